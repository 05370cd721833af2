//! Builds the blob for the bare target, where the host side wants to embed it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Linked at `abi::BLOB_BASE`, with nothing to relocate.
const LINK_FLAGS: &[&str] = &[
    "-Crelocation-model=pic",
    "-Clink-arg=--image-base=0x300000000000",
    "-Clink-arg=--no-pie",
    "-Clink-arg=-znorelro",
    "-Clink-arg=--no-gc-sections",
];

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../sysabi/src");
    println!("cargo::rerun-if-changed=../eventlog/src/record.rs");
    if env::var_os("CARGO_FEATURE_EMBED").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let status = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--package=guest",
            "--bin=understudy-guest",
        ])
        .args([
            "--no-default-features",
            "--features=blob",
            "--target=x86_64-unknown-none",
        ])
        .arg("--target-dir")
        .arg(out.join("blob"))
        .env("CARGO_ENCODED_RUSTFLAGS", LINK_FLAGS.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        // The inner build script must not see the outer one's features.
        .env_remove("CARGO_FEATURE_EMBED")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "building the guest failed");
    let blob = out.join("blob/x86_64-unknown-none/release/understudy-guest");
    println!("cargo::rustc-env=GUEST_BLOB={}", blob.display());
}
