//! Servers from packages of the distribution, as tests and measurements run them.
//!
//! In: a directory for a server's files. Out: its command line; the files are there then.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::rng::Rng;

/// Where memcached listens.
pub const MEMCACHED_PORT: u16 = 11211;
/// Where lighttpd listens.
pub const LIGHTTPD_PORT: u16 = 8080;
/// Where nginx listens.
pub const NGINX_PORT: u16 = 8081;
/// Files that a web server answers with: `/0`, `/1` and so on.
pub const FILES: u64 = 40;

/// memcached with four threads, at its default options otherwise.
#[must_use]
pub fn memcached() -> Vec<String> {
    ["memcached", "-u", "root", "-t", "4"]
        .map(str::to_owned)
        .to_vec()
}

/// lighttpd, which is one process. It keeps connections for a million requests, and tells why it ends one.
///
/// # Errors
/// If a file cannot be written.
pub fn lighttpd(directory: &Path) -> Result<Vec<String>> {
    let root = directory.display();
    let configuration = format!(
        "server.document-root = \"{root}/files\"\nserver.port = {LIGHTTPD_PORT}\n\
         server.max-keep-alive-requests = 1000000\ndebug.log-timeouts = \"enable\"\n"
    );
    prepare(directory, "lighttpd.conf", &configuration)?;
    Ok(command(
        &["lighttpd", "-D", "-f"],
        directory,
        "lighttpd.conf",
    ))
}

/// nginx in one process, or with workers: a master, and so many that gave their privileges up, accept from the same
/// listener and share memory. It keeps connections for a million requests.
///
/// # Errors
/// If a file cannot be written.
pub fn nginx(directory: &Path, workers: Option<u32>) -> Result<Vec<String>> {
    let root = directory.display();
    let how = workers.map_or_else(
        || "master_process off; user root;".to_owned(),
        |workers| format!("worker_processes {workers}; user www-data;"),
    );
    let configuration = format!(
        "daemon off; {how} pid {root}/pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000;\n\
         client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
         uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen {NGINX_PORT}; root {root}/files; }} }}\n"
    );
    prepare(directory, "nginx.conf", &configuration)?;
    // A worker's own user must reach what it answers with.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    Ok(command(&["nginx", "-c"], directory, "nginx.conf"))
}

fn command(words: &[&str], directory: &Path, configuration: &str) -> Vec<String> {
    let path = directory.join(configuration).display().to_string();
    let words = words.iter().map(|&word| word.to_owned());
    words.chain([path]).collect()
}

fn prepare(directory: &Path, name: &str, configuration: &str) -> Result<()> {
    let write = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).with_context(|| format!("{} could not be written", path.display()))
    };
    write(&directory.join(name), configuration.as_bytes())?;
    let files = directory.join("files");
    fs::create_dir(&files).with_context(|| format!("{} could not be made", files.display()))?;
    (0..FILES).try_for_each(|number| write(&files.join(number.to_string()), &content(number)))
}

/// What lies in file `number`: from nothing to some hundred kilobytes.
#[must_use]
pub fn content(number: u64) -> Vec<u8> {
    let len = number * number * number * 4;
    let mut rng = Rng::new(number, 0);
    (0..len).map(|_| rng.below(256) as u8).collect()
}
