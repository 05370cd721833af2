//! System calls that cannot be recorded.

use crate::features::compile;
use crate::ground::Ground;

/// What the program prints: each call's error number, in two processes.
const PRINTED: &str = "38 38 38\n38 38 38\n";

#[test]
fn each_is_answered_with_enosys_and_named_once() {
    let ground = Ground::new();
    let program = compile(&ground, "refused", include_str!("../programs/refused.c"));
    let backup = ground.backup("--insecure");
    let log = ground.path("log").display().to_string();
    let record = format!("record --out {log} --");
    for how in [&record, &ground.run_line("--insecure")] {
        let mut command = ground.understudy("primary", &format!("{how} {program}"));
        let ended = ground.ended(&mut command);
        assert_eq!(String::from_utf8_lossy(&ended.stdout), PRINTED, "{how}");
        assert!(ended.status.success(), "{how}: {ended:?}");
        let mut said: Vec<&str> = ended.stderr.lines().collect();
        said.sort_unstable();
        let sentence = |name: &str| {
            format!(
                "understudy: the system call {name} is not supported and was answered with ENOSYS"
            )
        };
        assert_eq!(said, [sentence("bpf"), sentence("io_uring_setup")], "{how}");
    }
    let mut replay = ground.understudy("primary", &format!("replay {log}"));
    let replayed = ground.ended(&mut replay);
    assert_eq!(String::from_utf8_lossy(&replayed.stdout), PRINTED);
    backup.end();
}
