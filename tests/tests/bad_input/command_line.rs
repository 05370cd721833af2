//! The command line, and who gives it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use understudy_tests::understudy;

use crate::ground::Ground;

#[test]
fn what_makes_no_sense() {
    let ground = Ground::new();
    let run = ground.run_line("--insecure");
    let run = run.trim_end_matches("--");
    let table: &[(&str, &[&str])] = &[
        ("dance", &["\"dance\"", "understudy help"]),
        ("doctor --fast", &["\"--fast\"", "understudy help"]),
        (&format!("{run} --fast -- true"), &["\"--fast\""]),
        (
            &format!("{run} --epoch soon -- true"),
            &["\"soon\"", "--epoch"],
        ),
        (
            &format!("{run} --detect 1h -- true"),
            &["\"1h\"", "--detect"],
        ),
        (
            &format!("{run} --bridge a/b -- true"),
            &["--bridge", "twice"],
        ),
        (
            &format!("{run} --mode best -- true"),
            &["\"best\"", "--mode", "hybrid"],
        ),
        (run, &["no command to run", "`--`"]),
        ("backup --listen here --insecure", &["\"here\"", "--listen"]),
        ("backup --listen 127.0.0.1:7400", &["--tls", "--insecure"]),
        ("replay /no/where", &["/no/where", "understudy record"]),
    ];
    for (line, mentions) in table {
        ground.refused(&mut ground.understudy("primary", line), 2, mentions);
    }
}

#[test]
fn a_program_that_is_not_there() {
    let ground = Ground::new();
    let interpreted = ground.path("interpreted");
    fs::write(&interpreted, "#!/no/such/shell\n").unwrap();
    fs::set_permissions(&interpreted, fs::Permissions::from_mode(0o755)).unwrap();
    let interpreted = interpreted.display().to_string();
    let backup = ground.backup("--insecure");
    let bare = format!(
        "run --backup none --ip {}/24 --bridge br0 --",
        ground.bed.address(9)
    );
    let record = format!("record --out {} --", ground.path("log").display());
    for how in [&ground.run_line("--insecure"), &bare, &record] {
        ground.fails(
            &format!("{how} no-such-program"),
            &["\"no-such-program\"", "PATH"],
        );
        ground.fails(
            &format!("{how} {interpreted}"),
            &["interpreted", "No such file"],
        );
        assert!(!ground.path("log").exists(), "an empty recording is left");
    }
    backup.holds_nothing();
    backup.serves("--insecure");
    backup.end();
}

#[test]
fn another_user_than_root() {
    let ground = Ground::new();
    // That user may not be able to reach the build directory: run a copy.
    let directory = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let copy = directory.path().join("understudy");
    fs::copy(understudy().unwrap(), &copy).unwrap();
    let nobody = |line: &str| {
        let mut command = Command::new(&copy);
        ground.surround(&mut command, "primary");
        command
            .args(line.split_whitespace())
            .current_dir(directory.path())
            .uid(65534)
            .gid(65534);
        command
    };
    let log = ground.path("log");
    for line in [
        format!("{} true", ground.run_line("--insecure")),
        format!(
            "backup --listen 127.0.0.1:7400 --insecure --state {}",
            log.display()
        ),
        format!("record --out {} -- true", log.display()),
        format!("replay {}", directory.path().display()),
    ] {
        ground.refused(&mut nobody(&line), 1, &["root", "sudo"]);
    }
    assert!(!log.exists());
}
