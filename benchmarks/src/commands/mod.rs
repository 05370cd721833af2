//! What `understudy-bench` does, one command a file.

pub(crate) mod compare;
pub(crate) mod cost;
pub(crate) mod fault;
pub(crate) mod load;
pub(crate) mod pause;
pub(crate) mod race;
pub(crate) mod sim;
pub(crate) mod soak;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use understudy_bench::bed::Bed;
use understudy_bench::service::{Protection, Service, redis};

/// redis's port.
pub(crate) const PORT: u16 = 6379;

/// What the commands with a server of their own share.
#[derive(Args, Clone)]
pub(crate) struct Server {
    /// The program under test; without it, the one beside this program
    #[arg(long)]
    understudy: Option<PathBuf>,
    /// An option of `understudy run`, as often as needed
    #[arg(long = "option", allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Server {
    pub(crate) fn understudy(&self) -> Result<PathBuf> {
        if let Some(given) = &self.understudy {
            return Ok(given.clone());
        }
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program lies nowhere")?;
        Ok(beside.join("understudy"))
    }

    pub(crate) fn protected(&self, bed: &Bed, directory: &Path) -> Result<Service> {
        self.protected_with(bed, directory, &redis(PORT))
    }

    pub(crate) fn protected_with(
        &self,
        bed: &Bed,
        directory: &Path,
        command: &[String],
    ) -> Result<Service> {
        self.protected_at(bed, directory, command, PORT, &[])
    }

    /// A protected server that listens on `port`, with `more` options of `understudy run`.
    pub(crate) fn protected_at(
        &self,
        bed: &Bed,
        directory: &Path,
        command: &[String],
        port: u16,
        more: &[String],
    ) -> Result<Service> {
        let protection = Protection {
            understudy: self.understudy()?,
            options: [&self.options, more].concat(),
            ..Protection::default()
        };
        Service::protected(bed, directory, &protection, command, port)
    }

    /// What `understudy status` tells of the protected container of this name.
    pub(crate) fn status(&self, bed: &Bed, service: &Service, name: &str) -> Result<Status> {
        let words = ["status", name, "--json"];
        let out = service
            .command(bed.host("primary")?, &self.understudy()?, &words)
            .output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(
            out.status.success(),
            "understudy status said: {said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let fields = serde_json::from_str(said.trim());
        Ok(Status(fields.with_context(|| {
            format!("understudy status said: {said}")
        })?))
    }
}

/// An answer of `understudy status --json`.
pub(crate) struct Status(serde_json::Value);

impl Status {
    /// The number in this field.
    pub(crate) fn number(&self, field: &str) -> Result<u64> {
        let number = self.0.get(field).and_then(serde_json::Value::as_u64);
        number.with_context(|| format!("understudy status has no number {field}: {}", self.0))
    }
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
