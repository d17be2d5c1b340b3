//! Child processes that never outlive this one.
//!
//! Each is in a process group of its own, so that a terminal's Ctrl-C reaches only the parent, which ends them in order;
//! and each dies with the parent even if that is killed. Must not know: what the children do.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::Command;

/// A child process with its log file.
pub struct Child {
    name: String,
    pid: u32,
    log: PathBuf,
    process: tokio::process::Child,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts a child whose output is added to `log`. Must be called on the main thread: the kernel ends children when the
    /// *thread* that started them ends.
    pub fn start(name: String, mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let output = open_log(&log).with_context(|| format!("can't write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Self::spawn(name, command, log)
    }

    /// Starts a child that writes where this process does, and reads what `command` says. On the main thread, too.
    pub fn attached(name: String, command: Command) -> anyhow::Result<Self> {
        Self::spawn(name, command, PathBuf::from("stderr"))
    }

    fn spawn(name: String, mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        assert_eq!(std::thread::current().name(), Some("main"), "children are started on the main thread");
        command.process_group(0).kill_on_drop(true);
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl and getppid.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the kernel knew.
                if libc::getppid() as u32 == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
            });
        }
        let program = command.as_std().get_program().to_owned();
        let process = command.spawn().with_context(|| format!("can't start {} ({})", name, program.display()))?;
        let pid = process.id().context("a child that was just started has an id")?;
        Ok(Self { name, pid, log, process, ended: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// `Some` with a sentence the first time that it is found ended.
    pub fn found_dead(&mut self) -> Option<String> {
        if self.ended.is_some() {
            return None;
        }
        let status = self.process.try_wait().ok().flatten()?;
        self.ended = Some(status);
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "for an unknown reason".to_owned(),
        };
        Some(format!("{} (pid {}) ended: {how}; its log is {}", self.name, self.pid, self.log.display()))
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        const TAIL_BYTES: u64 = 2_000;
        let tail = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tail().unwrap_or_else(|e| format!("(its log can't be read: {e})"))
    }

    /// Stops it where it is, as a host does that swaps or is moved, until [`Child::resume`].
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ends it and whatever it started.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.process.wait().await.with_context(|| format!("can't wait for {}", self.name))?;
        self.ended = Some(status);
        Ok(status)
    }

    fn signal(&self, signal: i32) {
        // `id` is `None` once the child has been waited for: its number may be another process's by then.
        let group = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = group {
            // SAFETY: no memory is involved. A group that is gone already is what was wanted.
            unsafe { libc::kill(-group, signal) };
        }
    }
}

/// Opens a log for adding. What an earlier process was killed in the middle of must not take in the next line.
fn open_log(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Ends children: asks all, waits for at most `patience`, then kills those that are left and waits for them.
pub async fn end(children: &mut [&mut Child], patience: Duration) {
    children.iter().for_each(|c| c.terminate());
    let all = async {
        for child in children.iter_mut() {
            let waited = child.process.wait().await;
            child.ended = child.ended.or(waited.ok());
        }
    };
    if tokio::time::timeout(patience, all).await.is_ok() {
        return;
    }
    for child in children.iter_mut().filter(|c| c.ended.is_none()) {
        say(&format!("{} (pid {}) did not end within {} s and is killed", child.name, child.pid, patience.as_secs()));
        child.kill();
    }
    for child in children.iter_mut() {
        let waited = child.process.wait().await;
        child.ended = child.ended.or(waited.ok());
    }
}

/// A line on stderr. A closed stderr must not end this process and with it all children, as `eprintln!` would.
pub fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_added_to_and_a_broken_last_line_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        open_log(&log).unwrap().write_all(b"whole\nhal").unwrap();
        open_log(&log).unwrap().write_all(b"next\n").unwrap();
        open_log(&log).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "whole\nhal\nnext\nmore\n");
    }
}
