//! The process's own use of memory, CPU and file descriptors, read from `/proc/self` at each scrape.
//!
//! A value that can't be read is left out of the scrape. Must not know: Prometheus' registry.

use std::fmt::Write as _;
use std::fs;

/// The kernel gives times to user space in hundredths of a second on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Name, help and Prometheus type of each series.
pub(super) const SERIES: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "Processor time used, user and system, in seconds", "counter"),
    ("process_open_fds", "Open file descriptors", "gauge"),
    ("process_resident_memory_bytes", "Resident memory", "gauge"),
    ("process_start_time_seconds", "When the process began, in seconds since 1970", "gauge"),
    ("process_threads", "Threads", "gauge"),
];

/// Appends the series in Prometheus' text form.
pub(super) fn encode(out: &mut String) {
    let stat = Stat::read();
    let values = [
        stat.as_ref().map(|s| s.cpu_seconds),
        fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64),
        status_kib("VmRSS:").map(|kib| kib * 1024.0),
        stat.as_ref().and_then(|s| Some(s.started_after_boot_s + boot_time_s()?)),
        stat.as_ref().map(|s| s.threads),
    ];
    for ((name, help, kind), value) in SERIES.iter().zip(values) {
        if let Some(value) = value {
            // Writing to a string can't fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
}

struct Stat {
    cpu_seconds: f64,
    threads: f64,
    started_after_boot_s: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in brackets and may itself have spaces and brackets.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |nth: usize| fields.get(nth - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_seconds: (number(14)? + number(15)?) / TICKS_PER_SECOND,
            threads: number(20)?,
            started_after_boot_s: number(22)? / TICKS_PER_SECOND,
        })
    }
}

fn status_kib(key: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    text.lines().find_map(|l| l.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()
}

fn boot_time_s() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_plausible_value() {
        let mut text = String::new();
        encode(&mut text);
        let value = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_cpu_seconds_total") < 3600.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - value("process_start_time_seconds")).abs() < 3600.0);
        assert_eq!(text.matches("# HELP").count(), SERIES.len());
    }
}
