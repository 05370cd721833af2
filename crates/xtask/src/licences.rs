//! Licences and sources of everything that is linked in, judged by `deny.toml`.
//!
//! `cargo deny` does it where it is installed. Building it takes longer than all the tests together, so
//! elsewhere this file checks the same two lists from `cargo metadata`, without the network.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{cargo, output, root, run};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// Absent for crates of this workspace.
    source: Option<String>,
}

/// Checks licences, sources, and names the crates that are there in more than one version.
///
/// # Errors
/// One sentence that names every crate whose licence or source is not in `deny.toml`.
pub(crate) fn check() -> Result<()> {
    if cargo(&["deny", "--version"])
        .output()
        .is_ok_and(|out| out.status.success())
    {
        return run(&mut cargo(&[
            "deny", "check", "licenses", "bans", "sources",
        ]));
    }
    println!(
        "cargo-deny is not installed: licences and sources are checked without it, advisories are not"
    );
    let deny =
        fs::read_to_string(root().join("deny.toml")).context("deny.toml could not be read")?;
    let json = output(&mut cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--all-features",
    ]))?;
    let metadata: Metadata =
        serde_json::from_slice(&json).context("cargo metadata is not as expected")?;
    let wrong = judge(
        &metadata.packages,
        &list(&deny, "allow")?,
        &list(&deny, "allow-registry")?,
    );
    for line in duplicates(&metadata.packages) {
        println!("in more than one version: {line}");
    }
    if !wrong.is_empty() {
        bail!("not allowed by deny.toml: {}", wrong.join("; "));
    }
    println!(
        "{} crates, all allowed by deny.toml",
        metadata.packages.len()
    );
    Ok(())
}

/// The strings of `key = [ … ]`.
fn list(toml: &str, key: &str) -> Result<Vec<String>> {
    let mut lines = toml
        .lines()
        .skip_while(|line| !line.starts_with(&format!("{key} = [")));
    let first = lines
        .next()
        .with_context(|| format!("deny.toml has no list named {key}"))?;
    let mut items = Vec::new();
    for line in std::iter::once(first).chain(lines) {
        items.extend(line.split('"').skip(1).step_by(2).map(str::to_owned));
        if line.trim_end().ends_with(']') {
            return Ok(items);
        }
    }
    bail!("the list {key} of deny.toml has no end")
}

fn judge(packages: &[Package], licences: &[String], registries: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        let Some(source) = &package.source else {
            continue;
        };
        let who = format!("{} {}", package.name, package.version);
        if !registries
            .iter()
            .any(|r| source.strip_prefix("registry+") == Some(r))
        {
            wrong.push(format!("{who} comes from {source}"));
        }
        match &package.license {
            Some(expression) if permits(expression, licences) => {}
            Some(expression) => wrong.push(format!("{who} is under {expression}")),
            None => wrong.push(format!("{who} names no licence")),
        }
    }
    wrong
}

/// True if the licences in `allowed` are enough to use something under this SPDX expression.
fn permits(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(&mut words, allowed);
    verdict && words.next().is_none()
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn any_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut verdict = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all_of(words, allowed);
    }
    verdict
}

fn all_of(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut verdict = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one(words: Words<'_, '_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let verdict = any_of(words, allowed);
        return verdict & words.next_if_eq(&")").is_some();
    }
    let mut name = words.next().unwrap_or_default().to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&name)
}

fn duplicates(packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        versions
            .entry(&package.name)
            .or_default()
            .push(&package.version);
    }
    let more = versions.into_iter().filter(|(_, all)| all.len() > 1);
    more.map(|(name, all)| format!("{name} {}", all.join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, license: &str, source: &str) -> Package {
        let (license, source) = (Some(license.to_owned()), Some(source.to_owned()));
        Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license,
            source,
        }
    }

    #[test]
    fn an_expression_is_permitted_by_the_licences_it_needs() {
        let allowed = [
            "MIT".to_owned(),
            "ISC".to_owned(),
            "Apache-2.0 WITH LLVM-exception".to_owned(),
        ];
        for yes in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(GPL-3.0 OR MIT) AND ISC",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permits(yes, &allowed), "{yes}");
        }
        for no in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "",
            "MIT MIT",
            "(MIT",
            "Apache-2.0",
        ] {
            assert!(!permits(no, &allowed), "{no}");
        }
    }

    #[test]
    fn a_wrong_licence_or_source_is_named() {
        let here = "registry+https://example.org/index";
        let packages = [
            package("a", "MIT", here),
            package("b", "GPL-3.0", here),
            package("c", "MIT", "git+x"),
        ];
        let wrong = judge(
            &packages,
            &["MIT".to_owned()],
            &["https://example.org/index".to_owned()],
        );
        assert_eq!(
            wrong,
            ["b 1.0.0 is under GPL-3.0", "c 1.0.0 comes from git+x"]
        );
    }

    #[test]
    fn lists_are_read_from_one_line_or_several() {
        let toml =
            "allow = [\n  \"MIT\",\n  \"ISC\",\n]\nallow-git = []\nallow-registry = [\"x\"]\n";
        assert_eq!(list(toml, "allow").unwrap(), ["MIT", "ISC"]);
        assert_eq!(list(toml, "allow-registry").unwrap(), ["x"]);
        assert!(list(toml, "allow-git").unwrap().is_empty());
        assert!(list("allow = [\n", "allow").is_err());
    }
}
