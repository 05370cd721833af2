//! Web servers, with one process or several, which answer from files of many sizes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use understudy_bench::rng::Rng;
use understudy_tests::crowd;

use crate::survives;

const FILES: u64 = 40;

#[test]
fn lighttpd() {
    survives::<Client>(8080, |directory| {
        let root = directory.display();
        let configuration = format!(
            "server.document-root = \"{root}/files\"\nserver.port = 8080\nserver.max-keep-alive-requests = 1000000\n"
        );
        prepare(directory, "lighttpd.conf", &configuration);
        ["lighttpd", "-D", "-f"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{root}/lighttpd.conf")])
            .collect()
    });
}

#[test]
fn nginx_with_one_process() {
    survives::<Client>(8081, |directory| {
        nginx(directory, "master_process off; user root;")
    });
}

/// A master, and workers that gave their privileges up, accept from the same listener and share memory.
#[test]
fn nginx_with_two_workers() {
    survives::<Client>(8081, |directory| {
        // Its own user must reach what it answers with.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        nginx(directory, "worker_processes 2; user www-data;")
    });
}

fn nginx(directory: &Path, how: &str) -> Vec<String> {
    let root = directory.display();
    let configuration = format!(
        "daemon off; {how} pid {root}/pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; keepalive_requests 1000000;\n\
         client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
         uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen 8081; root {root}/files; }} }}\n"
    );
    prepare(directory, "nginx.conf", &configuration);
    ["nginx", "-c"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("{root}/nginx.conf")])
        .collect()
}

fn prepare(directory: &Path, name: &str, configuration: &str) {
    fs::write(directory.join(name), configuration).unwrap();
    let files = directory.join("files");
    fs::create_dir(&files).unwrap();
    for number in 0..FILES {
        fs::write(files.join(number.to_string()), content(number)).unwrap();
    }
}

/// What lies in a file: from nothing to some hundred kilobytes.
fn content(number: u64) -> Vec<u8> {
    let len = number * number * number * 4;
    let mut rng = Rng::new(number, 0);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

struct Client {
    reader: BufReader<TcpStream>,
    rng: Rng,
    contents: Vec<Vec<u8>>,
}

impl crowd::Client for Client {
    fn begin(stream: TcpStream, _: u64, rng: Rng) -> Result<Self> {
        Ok(Self {
            reader: BufReader::new(stream),
            rng,
            contents: (0..FILES).map(content).collect(),
        })
    }

    fn step(&mut self) -> Result<()> {
        let number = usize::try_from(self.rng.below(FILES))?;
        let request = format!("GET /{number} HTTP/1.1\r\nHost: here\r\n\r\n");
        self.reader.get_ref().write_all(request.as_bytes())?;
        let mut len = None;
        for index in 0.. {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let line = line
                .strip_suffix("\r\n")
                .with_context(|| format!("{line:?} is no line"))?;
            if index == 0 {
                ensure!(line == "HTTP/1.1 200 OK", "the answer begins with {line:?}");
            } else if line.is_empty() {
                break;
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                len = Some(value.parse()?);
            }
        }
        let mut body = vec![0; len.context("an answer without a length")?];
        self.reader.read_exact(&mut body)?;
        ensure!(
            body == self.contents[number],
            "file {number} has another content"
        );
        Ok(())
    }
}
