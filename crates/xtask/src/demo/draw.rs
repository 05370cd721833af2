//! The load in the terminal as it happens: a column for ten milliseconds, a line for a second.

use std::io::{IsTerminal, Write};

use understudy_bench::load::Step;

const COLUMNS: usize = 100;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The second that is being drawn.
pub(super) struct Picture {
    live: bool,
    line: Vec<Step>,
    /// The full height of a column.
    most: u32,
    fault_at: Option<usize>,
    fault_now: bool,
}

impl Picture {
    pub(super) fn new() -> Self {
        println!(
            "requests answered, a column for 10 ms, a line for 1 s; · none, ✖ the host is lost"
        );
        let live = std::io::stdout().is_terminal();
        Self {
            live,
            line: Vec::with_capacity(COLUMNS),
            most: 1,
            fault_at: None,
            fault_now: false,
        }
    }

    /// The next step is the one with the fault.
    pub(super) const fn fault(&mut self) {
        self.fault_now = true;
    }

    /// Draws one step more.
    pub(super) fn step(&mut self, step: Step) {
        if std::mem::take(&mut self.fault_now) {
            self.fault_at = Some(step.index);
        }
        self.most = self.most.max(step.replies);
        self.line.push(step);
        let full = self.line.len() == COLUMNS;
        // Five times a second is enough for an eye, and leaves the processor to the servers.
        if full || (self.live && (self.line.len().is_multiple_of(20) || step.replies == 0)) {
            self.print(full);
        }
        if full {
            self.line.clear();
        }
    }

    /// Draws what is left of the last second.
    pub(super) fn finish(&mut self) {
        if !self.line.is_empty() {
            self.print(true);
        }
    }

    fn print(&self, end: bool) {
        let mut out = std::io::stdout().lock();
        let (start, stop) = if self.live {
            ("\r\x1b[K", if end { "\n" } else { "" })
        } else {
            ("", "\n")
        };
        // A terminal that went away is no reason to stop.
        let _ = write!(
            out,
            "{start}{}{stop}",
            row(&self.line, self.most, self.fault_at, self.live)
        );
        let _ = out.flush();
    }
}

/// One line: time, columns, sums.
fn row(line: &[Step], most: u32, fault_at: Option<usize>, colour: bool) -> String {
    let Some((first, last)) = line.first().zip(line.last()) else {
        return String::new();
    };
    let mut text = format!("{:3} s ", first.index / COLUMNS);
    for step in line {
        let lost_here = fault_at == Some(step.index);
        match (lost_here, step.replies) {
            (true, _) if colour => text.push_str("\x1b[1;31m✖\x1b[0m"),
            (true, _) => text.push('✖'),
            (false, 0) if colour => text.push_str("\x1b[31m·\x1b[0m"),
            (false, 0) => text.push('·'),
            (false, n) => text.push(bar(n, most)),
        }
    }
    text.extend(std::iter::repeat_n(' ', COLUMNS - line.len().min(COLUMNS)));
    let sum: u32 = line.iter().map(|step| step.replies).sum();
    text + &format!(" {sum:6}  wrong {}  broken {}", last.faults, last.broken)
}

fn bar(count: u32, most: u32) -> char {
    let top = BARS.len() - 1;
    BARS[(count as usize * top)
        .div_ceil(most.max(1) as usize)
        .min(top)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_height_silence_and_loss() {
        let step = |index, replies| Step {
            index,
            replies,
            faults: 1,
            broken: 2,
        };
        let line = [step(300, 800), step(301, 1), step(302, 7), step(303, 0)];
        let text = row(&line, 800, Some(302), false);
        assert!(text.starts_with("  3 s █▂✖·  "), "{text}");
        assert!(text.ends_with("    808  wrong 1  broken 2"), "{text}");
    }
}
