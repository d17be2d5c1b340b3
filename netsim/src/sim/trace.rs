//! What happened in a run, a line an event, for people and for comparing two processes.
//!
//! Must not know: what events mean.

use std::fmt::Write as _;
use std::io::Write;

/// Takes the lines of a run.
pub struct Trace {
    out: Option<Box<dyn Write + Send>>,
    line: String,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("on", &self.on()).finish_non_exhaustive()
    }
}

impl Trace {
    /// Keeps nothing: many runs, of which only a failing one is replayed.
    pub fn off() -> Self {
        Self { out: None, line: String::new() }
    }

    /// Writes every line.
    pub fn to(out: Box<dyn Write + Send>) -> Self {
        Self { out: Some(out), line: String::new() }
    }

    /// Whether lines are wanted at all.
    pub fn on(&self) -> bool {
        self.out.is_some()
    }

    /// One line: the number of the event, the true time in microseconds, and what happened.
    ///
    /// # Errors
    /// What the output fails with.
    pub fn event(&mut self, number: u64, at: u64, what: &dyn std::fmt::Display) -> std::io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        self.line.clear();
        writeln!(self.line, "{number:>7} {:>5}.{:06} {what}", at / 1_000_000, at % 1_000_000)
            .map_err(std::io::Error::other)?;
        out.write_all(self.line.as_bytes())
    }

    /// Everything written is out.
    ///
    /// # Errors
    /// What the output fails with.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |out| out.flush())
    }
}
