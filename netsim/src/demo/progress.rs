//! A progress bar on stderr: redrawn on a terminal, a line for each tenth elsewhere.
//!
//! Must not know: what is counted.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// See the module.
pub struct Bar {
    total: usize,
    began: Instant,
    terminal: bool,
    tenths: usize,
}

impl Bar {
    /// A bar that is full at `total`.
    pub fn new(total: usize) -> Self {
        Self { total, began: Instant::now(), terminal: std::io::stderr().is_terminal(), tenths: 0 }
    }

    /// Shows how far it is.
    pub fn show(&mut self, done: usize) {
        let tenths = 10 * done / self.total.max(1);
        let line = line(done, self.total, self.began.elapsed().as_secs_f64());
        let mut stderr = std::io::stderr();
        // A closed stderr is no reason to stop.
        if self.terminal {
            let end = if done >= self.total { "\n" } else { "" };
            write!(stderr, "\r{line}{end}").and_then(|()| stderr.flush()).ok();
        } else if tenths > self.tenths || done == self.total {
            writeln!(stderr, "{line}").ok();
        }
        self.tenths = tenths;
    }
}

fn line(done: usize, total: usize, seconds: f64) -> String {
    const WIDTH: usize = 30;
    let filled = WIDTH * done.min(total) / total.max(1);
    let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
    let bar = format!("{}{}", "█".repeat(filled), "░".repeat(WIDTH - filled));
    format!("  {bar} {done}/{total} documents, {seconds:.1} s, {rate:.0}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_fills_with_its_count() {
        assert!(line(0, 10, 0.0).contains(&"░".repeat(30)));
        assert!(line(5, 10, 2.5).ends_with("5/10 documents, 2.5 s, 2/s"));
        assert!(line(10, 10, 1.0).contains(&"█".repeat(30)));
        assert!(line(0, 0, 0.0).contains("0/0"));
    }
}
