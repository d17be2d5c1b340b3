//! The result as tables and as JSON.
//!
//! Must not know: how it was measured.

use std::fmt::Write as _;

use serde::Serialize;

use super::measure::Compared;

/// A against B in several numbers.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Who A is.
    pub a: String,
    /// Who B is.
    pub b: String,
    /// The numbers.
    pub rows: Vec<Compared>,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the nodes are.
    pub node: String,
    /// How many documents were loaded.
    pub documents: usize,
    /// Cores of the machine.
    pub cores: usize,
    /// Cores of each machine of a mesh, and of the single node, where each has its own.
    pub machine_cores: Option<f64>,
    /// Requests of each side of a latency measurement.
    pub requests: usize,
    /// Rounds of a throughput measurement.
    pub rounds: usize,
    /// Connections of a throughput measurement.
    pub connections: usize,
    /// The tables.
    pub tables: Vec<Table>,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let each = self.machine_cores.map(|cores| format!(" ({cores} for each machine)")).unwrap_or_default();
        let mut out = format!(
            "{} documents, {}, {} cores{}; latencies of {} requests at one connection, throughput of {} rounds at {} connections\n",
            self.documents, self.node, self.cores, each, self.requests, self.rounds, self.connections
        );
        for table in &self.tables {
            let _ = writeln!(out, "\nA: {}\nB: {}", table.a, table.b);
            let _ = writeln!(out, "  {:<12} {:>10} {:>10} {:>8} {:>8}", "", "A", "B", "B/A", "A/A");
            for row in &table.rows {
                let verdict = if row.differs() { "" } else { "  no difference" };
                let _ = writeln!(
                    out,
                    "  {:<12} {:>10.2} {:>10.2} {:>8.3} {:>8.3}{verdict}",
                    row.what, row.a, row.b, row.ratio, row.a_over_a
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_says_where_there_is_no_difference() {
        let row = |what, ratio| Compared { what, a: 1.0, b: 2.0, ratio, a_over_a: 1.05 };
        let rows = vec![row("p50 ms", 1.01), row("p99 ms", 2.0)];
        let report = Report {
            node: "n".into(),
            documents: 1,
            cores: 2,
            machine_cores: Some(0.5),
            requests: 3,
            rounds: 4,
            connections: 5,
            tables: vec![Table { a: "node".into(), b: "mesh".into(), rows }],
        };
        let text = report.text();
        assert!(text.contains("2 cores (0.5 for each machine); "), "{text}");
        assert!(text.lines().any(|l| l.contains("p50") && l.ends_with("no difference")), "{text}");
        assert!(text.lines().any(|l| l.contains("p99") && l.ends_with("1.050")), "{text}");
        assert_eq!(serde_json::to_value(&report).unwrap()["tables"][0]["rows"][1]["ratio"], 2.0);
    }
}
