//! Machines of one size each: a control group holds the processes of one machine, and has so many cores.
//!
//! On one computer a mesh's nodes share the cores that a single node would have to itself; with this each has its own. Linux
//! alone, and root. Must not know: what the processes are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Where groups that limit processor time are made: version 1, and version 2.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];
/// Microseconds over which processor time is counted.
const PERIOD_US: u32 = 20_000;

/// One machine; what is in it goes back to where it was when this is dropped.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    root: &'static str,
}

impl Machine {
    /// A machine of so many cores, with these processes on it.
    ///
    /// # Errors
    /// This system has no such groups, or the process may not make them.
    pub fn of(name: &str, cores: f64, pids: &[u32]) -> anyhow::Result<Self> {
        let usable = |root: &&str| {
            ["cpu.cfs_quota_us", "cgroup.subtree_control"].iter().any(|f| Path::new(root).join(f).exists())
        };
        let Some(root) = ROOTS.into_iter().find(usable) else {
            bail!("--machine-cores: this system has no control groups for processor time")
        };
        let dir = Path::new(root).join(format!("miroir-bench-{}-{name}", std::process::id()));
        let made = fs::create_dir(&dir);
        made.with_context(|| format!("--machine-cores: can't make {} (it needs root)", dir.display()))?;
        let machine = Self { dir, root };
        machine.limit(cores).context("--machine-cores: can't limit the group")?;
        for pid in pids {
            machine.put(&machine.dir, *pid).with_context(|| format!("--machine-cores: can't move process {pid}"))?;
        }
        Ok(machine)
    }

    fn limit(&self, cores: f64) -> io::Result<()> {
        let quota = (cores * f64::from(PERIOD_US)).round();
        if self.root == ROOTS[0] {
            fs::write(self.dir.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            return fs::write(self.dir.join("cpu.cfs_quota_us"), quota.to_string());
        }
        fs::write(Path::new(self.root).join("cgroup.subtree_control"), "+cpu")?;
        fs::write(self.dir.join("cpu.max"), format!("{quota} {PERIOD_US}"))
    }

    fn put(&self, dir: &Path, pid: u32) -> io::Result<()> {
        fs::write(dir.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let left = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines().filter_map(|line| line.parse().ok()) {
            // One that has ended meanwhile need not be moved.
            let _ = self.put(Path::new(self.root), pid);
        }
        if let Err(error) = fs::remove_dir(&self.dir) {
            eprintln!("can't remove {}: {error}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_its_cores_and_leaves_nothing() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let machine = Machine::of("test", 0.5, &[child.id()]);
        let dir = machine.as_ref().ok().map(|machine| machine.dir.clone());
        match &machine {
            Ok(machine) => {
                let within = fs::read_to_string(machine.dir.join("cgroup.procs")).unwrap();
                assert_eq!(within.trim(), child.id().to_string());
                let limit = ["cpu.cfs_quota_us", "cpu.max"].map(|f| fs::read_to_string(machine.dir.join(f)));
                let limit: Vec<String> = limit.into_iter().flatten().collect();
                assert!(limit.iter().all(|text| text.starts_with("10000")) && limit.len() == 1, "{limit:?}");
            }
            // Without root, or without such groups, it says so.
            Err(error) => assert!(error.to_string().starts_with("--machine-cores: "), "{error}"),
        }
        drop(machine);
        assert!(dir.is_none_or(|dir| !dir.exists()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
