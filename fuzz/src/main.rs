//! libFuzzer around the table of decoders: the target is the one that `UNDERSTUDY_FUZZ` names.
//!
//! `cargo xtask fuzz` runs it. Without the variable it lists the targets and ends; with `UNDERSTUDY_SEEDS`
//! it writes the target's seeds into that directory first.
#![no_main]

use std::env;
use std::fs;
use std::path::Path;
use std::process;
use std::sync::OnceLock;

use decoders::{TARGETS, Target};
use sys::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
    },
    |data: &[u8]| {
        TARGET.get_or_init(chosen).check(data);
    }
);

/// The target that was asked for, with its seeds written if that was, too.
fn chosen() -> &'static Target {
    let Some(name) = env::var_os("UNDERSTUDY_FUZZ") else {
        for target in TARGETS {
            println!("{}\t{}", target.name, target.about);
        }
        process::exit(0);
    };
    let Some(target) = name.to_str().and_then(Target::named) else {
        eprintln!("there is no target {name:?}");
        process::exit(2);
    };
    if let Some(directory) = env::var_os("UNDERSTUDY_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let path = Path::new(&directory).join(format!("seed-{number}"));
            if let Err(error) = fs::write(&path, seed) {
                eprintln!("{} cannot be written: {error}", path.display());
                process::exit(2);
            }
        }
    }
    target
}
