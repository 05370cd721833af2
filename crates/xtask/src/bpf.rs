//! The gate's BPF object: built from its C source by the command in `crates/gate/bpf/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::process::{self, command, root};

/// Builds the object, or with `check` compares the committed one with what the source gives.
///
/// # Errors
/// If clang fails, or with `check`, if the two objects would load different programs or maps.
pub(crate) fn run_in_gate(dir: &Path, check: bool) -> Result<()> {
    let readme = dir.join("README.md");
    let text = fs::read_to_string(&readme)
        .with_context(|| format!("{} could not be read", readme.display()))?;
    let words = clang_command(&text)
        .with_context(|| format!("{} holds no clang command with -o", readme.display()))?;
    let object = dir.join(&words.output);
    if !check {
        compile(dir, &words, &object)?;
        println!("wrote {}", object.display());
        return Ok(());
    }
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let fresh = scratch.path().join("fresh.o");
    compile(dir, &words, &fresh)?;
    let differing = compare(&read(&object)?, &read(&fresh)?)?;
    if !differing.is_empty() {
        bail!(
            "{} is not what its source gives (different: {}): run cargo xtask bpf",
            object.display(),
            differing.join(", ")
        );
    }
    println!("{} is what its source gives", object.display());
    Ok(())
}

/// [`run_in_gate`] on this workspace's gate.
///
/// # Errors
/// As there.
pub(crate) fn run(check: bool) -> Result<()> {
    run_in_gate(&root().join("crates/gate/bpf"), check)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} could not be read", path.display()))
}

struct Clang {
    /// All words but `clang`, `-o` and the output.
    args: Vec<String>,
    output: PathBuf,
}

/// The first line of `text` that runs clang with an output, continued lines joined.
fn clang_command(text: &str) -> Option<Clang> {
    let joined = text.replace("\\\n", " ");
    joined.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("$ ").split_whitespace();
        if words.next() != Some("clang") {
            return None;
        }
        let (mut args, mut output) = (Vec::new(), None);
        while let Some(word) = words.next() {
            if word == "-o" {
                output = words.next().map(PathBuf::from);
            } else {
                args.push(word.to_owned());
            }
        }
        Some(Clang {
            args,
            output: output?,
        })
    })
}

fn compile(dir: &Path, clang: &Clang, output: &Path) -> Result<()> {
    process::run(
        command("clang")
            .current_dir(dir)
            .args(&clang.args)
            .arg("-o")
            .arg(output),
    )?;
    process::run(command("llvm-strip").arg("-g").arg(output))
}

/// Names what differs between two objects, leaving out debugging data.
fn compare(committed: &[u8], fresh: &[u8]) -> Result<Vec<String>> {
    let (committed, fresh) = (contents(committed)?, contents(fresh)?);
    let mut differing: Vec<String> = committed
        .iter()
        .filter(|c| !fresh.contains(c))
        .map(|(name, _, _)| name.clone())
        .collect();
    for (name, _, _) in fresh.iter().filter(|c| !committed.contains(c)) {
        if !differing.contains(name) {
            differing.push(name.clone());
        }
    }
    Ok(differing)
}

/// Name, bytes and relocations (offset, symbol) of each section that decides what is loaded.
type Section = (String, Vec<u8>, Vec<(u64, String)>);

fn contents(bytes: &[u8]) -> Result<Vec<Section>> {
    let file = object::File::parse(bytes).context("not an object file")?;
    let mut sections = Vec::new();
    for section in file.sections() {
        let name = section
            .name()
            .context("a section without a readable name")?;
        if !matters(name) {
            continue;
        }
        let mut relocations = Vec::new();
        for (offset, relocation) in section.relocations() {
            let object::RelocationTarget::Symbol(index) = relocation.target() else {
                continue;
            };
            let symbol = file.symbol_by_index(index)?;
            relocations.push((offset, format!("{}+{}", symbol.name()?, symbol.address())));
        }
        let data = section
            .data()
            .with_context(|| format!("section {name} has no readable bytes"))?;
        sections.push((name.to_owned(), data.to_vec(), relocations));
    }
    Ok(sections)
}

/// Debugging data and tables of names say nothing about the program; relocations are compared by symbol.
/// `.BTF` stays: the maps' types and sizes are in it.
fn matters(section: &str) -> bool {
    const LEFT_OUT: &[&str] = &[
        ".debug",
        ".BTF.ext",
        ".rel",
        ".symtab",
        ".strtab",
        ".shstrtab",
        ".llvm",
        ".comment",
    ];
    !section.is_empty() && !LEFT_OUT.iter().any(|prefix| section.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "Built by\n\n```\nclang -O2 -g -target bpf \\\n -fdebug-compilation-dir=. -c a.bpf.c -o a.bpf.o\n```\n";
    const SOURCE: &str = "struct { int (*max_entries)[8]; } map __attribute__((section(\".maps\")));\n\
        int answer(void *c) { return c == &map ? 42 : 7; }\n";

    #[test]
    fn the_command_is_read_from_the_page() {
        let clang = clang_command(README).unwrap();
        assert_eq!(
            clang.args,
            [
                "-O2",
                "-g",
                "-target",
                "bpf",
                "-fdebug-compilation-dir=.",
                "-c",
                "a.bpf.c"
            ]
        );
        assert_eq!(clang.output, Path::new("a.bpf.o"));
        assert!(clang_command("see clang -o x\n").is_none());
    }

    #[test]
    fn an_object_of_another_source_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("README.md"), README).unwrap();
        fs::write(dir.path().join("a.bpf.c"), SOURCE).unwrap();
        run_in_gate(dir.path(), false).unwrap();
        run_in_gate(dir.path(), true).unwrap();
        fs::write(
            dir.path().join("a.bpf.c"),
            format!("/* moves lines */\n\n{SOURCE}"),
        )
        .unwrap();
        run_in_gate(dir.path(), true).unwrap();
        for (other, section) in [
            (SOURCE.replace("42", "43"), ".text"),
            (SOURCE.replace('8', "9"), ".BTF"),
        ] {
            fs::write(dir.path().join("a.bpf.c"), other).unwrap();
            let said = run_in_gate(dir.path(), true).unwrap_err().to_string();
            assert!(
                said.contains(section) && said.contains("cargo xtask bpf"),
                "{said}"
            );
        }
    }
}
