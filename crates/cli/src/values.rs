//! Values on the command line and their limits. Each parser's error is the end of a sentence that
//! begins with the value.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Longest name of a container.
const NAME_MAX: usize = 64;

/// A whole number with a unit, `100ms` or `1s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a whole number with a unit, us, ms, s or m, such as 100ms".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let micros = match unit {
        "us" => Some(1),
        "ms" => Some(1000),
        "s" => Some(1_000_000),
        "m" => Some(60_000_000),
        _ => None,
    };
    let micros = number
        .checked_mul(micros.ok_or_else(wrong)?)
        .ok_or_else(wrong)?;
    Ok(Duration::from_micros(micros))
}

/// A duration within limits.
fn between(text: &str, low: &str, high: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    if (duration(low)?..=duration(high)?).contains(&given) {
        Ok(given)
    } else {
        Err(format!("give a time from {low} to {high}"))
    }
}

/// Time between checkpoints.
pub(crate) fn epoch(text: &str) -> Result<Duration, String> {
    between(text, "10ms", "10s")
}

/// Time between heartbeats.
pub(crate) fn heartbeat(text: &str) -> Result<Duration, String> {
    between(text, "1ms", "10s")
}

/// Silence that counts as loss.
pub(crate) fn detect(text: &str) -> Result<Duration, String> {
    between(text, "2ms", "60s")
}

/// How long takeovers are tried.
pub(crate) fn budget(text: &str) -> Result<Duration, String> {
    between(text, "1ms", "60s")
}

/// An address with the length of its network's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "give an address and a length from 1 to 32, such as 10.0.0.10/24".to_owned();
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let plain = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
        if !(1..=32).contains(&prefix) {
            return Err(wrong());
        }
        let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        let host = u32::from(address) & host_bits;
        // Networks of one or two addresses have none to spare for these two.
        let reserved = prefix < 31 && (host == 0 || host == host_bits);
        let first = address.octets()[0];
        if reserved || first == 0 || first == 127 || first >= 224 {
            return Err("it is not the address of one host on a network".into());
        }
        Ok(Self { address, prefix })
    }
}

/// `--backup`: an address, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backup {
    None,
    At(SocketAddr),
}

impl FromStr for Backup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let wrong = |_| "give IP:PORT, such as 10.0.0.2:7000, or none".to_owned();
        endpoint(text).map(Self::At).map_err(wrong)
    }
}

/// An address with a port that is not 0.
pub(crate) fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let parsed = text
        .parse()
        .ok()
        .filter(|address: &SocketAddr| address.port() != 0);
    parsed.ok_or_else(|| "give IP:PORT, such as 10.0.0.2:7000".to_owned())
}

/// A container's name.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let start = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if start && text.len() <= NAME_MAX && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err(
            "give up to 64 letters, digits, dots, underscores and dashes, a letter or digit first"
                .into(),
        )
    }
}

/// The name a container has if none is given: its command's base name.
pub(crate) fn default_name(command: &OsStr) -> Result<String, String> {
    let base = Path::new(command)
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default();
    name(base).map_err(|_| format!("the command {command:?} gives no name: give one with --name"))
}

/// A bridge's name, as the kernel would take it.
pub(crate) fn bridge(text: &str) -> Result<String, String> {
    let bad = text.is_empty() || text.len() > 15 || matches!(text, "." | "..");
    if bad || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        Err("give the name of a link, at most 15 characters".into())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        for bad in [
            "",
            "10",
            "ms",
            "1.5s",
            "-1s",
            "1 s",
            "1h",
            "99999999999999999999s",
            "９ms",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(duration(&format!("{}s", u64::MAX)).is_err());
        assert!(epoch("9ms").is_err() && epoch("10ms").is_ok() && epoch("10s").is_ok());
        assert!(heartbeat("0ms").is_err() && detect("61s").is_err());
    }

    #[test]
    fn networks() {
        let parse = |text: &str| text.parse::<Network>();
        let address = Ipv4Addr::new(10, 0, 0, 10);
        assert_eq!(
            parse("10.0.0.10/24"),
            Ok(Network {
                address,
                prefix: 24
            })
        );
        assert!(parse("10.0.0.10/32").is_ok() && parse("10.0.0.0/31").is_ok());
        let bad = [
            "10.0.0.10",
            "10.0.0.10/33",
            "10.0.0.10/0",
            "10.0.0.10/+8",
            "10.0.0/24",
            "/24",
        ];
        for bad in bad.iter().chain(&[
            "10.0.0.0/24",
            "10.0.0.255/24",
            "224.0.0.1/24",
            "127.0.0.1/8",
        ]) {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(name("redis-server"), Ok("redis-server".into()));
        for bad in ["", "-x", ".x", "a/b", "ä", "a b", &"x".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            default_name(OsStr::new("/usr/bin/redis-server")),
            Ok("redis-server".into())
        );
        assert!(default_name(OsStr::new("/")).is_err());
    }

    #[test]
    fn endpoints() {
        assert_eq!("none".parse(), Ok(Backup::None));
        assert!(matches!("[::1]:7000".parse(), Ok(Backup::At(_))));
        for bad in [
            "",
            "10.0.0.2",
            "10.0.0.2:",
            "10.0.0.2:0",
            "10.0.0.2:70000",
            "host:1",
        ] {
            assert!(bad.parse::<Backup>().is_err(), "{bad}");
        }
        assert!(
            bridge("br0").is_ok() && bridge("a/b").is_err() && bridge(&"b".repeat(16)).is_err()
        );
    }
}
