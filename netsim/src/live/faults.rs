//! Faults of the links between hosts, and of the hosts themselves: what they are, and what must follow from them.
//!
//! Rule: a fault that is not said here does not happen, so what members see can be worked out and compared. Must not know:
//! how faults are carried out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::lab::link;

/// The packet filter, without faults.
pub const TABLE: &str = "table bridge part {
    set cut { type ifname . ifname; }
    set udp_cut { type ifname . ifname; }
    chain loss { }
    chain faults {
        type filter hook forward priority 0; policy accept;
        iifname . oifname @cut counter drop
        iifname . oifname @udp_cut ip protocol udp counter drop
        jump loss
    }
}
";

/// Packets from one host to another.
type Way = (usize, usize);

/// All faults of links at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    cut: BTreeSet<Way>,
    udp_cut: BTreeSet<Way>,
    loss_percent: u8,
}

fn both_ways(a: &[usize], b: &[usize]) -> impl Iterator<Item = Way> {
    a.iter().flat_map(move |a| b.iter().flat_map(move |b| [(*a, *b), (*b, *a)]))
}

impl Faults {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// Nothing passes between `a` and `b`.
    pub fn between(mut self, a: &[usize], b: &[usize]) -> Self {
        self.cut.extend(both_ways(a, b));
        self
    }

    /// Nothing that `from` sends arrives at `to`; the other way is open.
    pub fn one_way(mut self, from: usize, to: &[usize]) -> Self {
        self.cut.extend(to.iter().map(|to| (from, *to)));
        self
    }

    /// UDP does not pass between `a` and `b`; TCP does.
    pub fn udp_between(mut self, a: &[usize], b: &[usize]) -> Self {
        self.udp_cut.extend(both_ways(a, b));
        self
    }

    /// So many packets of a hundred are lost, on all links.
    pub fn loss(mut self, percent: u8) -> Self {
        self.loss_percent = percent;
        self
    }

    /// Whether the mesh can't go on between two hosts. It needs both ways: a question that gets no answer is as good as none.
    pub fn separated(&self, a: usize, b: usize) -> bool {
        let ways = [(a, b), (b, a)];
        ways.iter().any(|way| self.cut.contains(way) || self.udp_cut.contains(way))
    }

    /// What `nft -f` makes these the only faults by, all at once.
    pub fn script(&self) -> String {
        let mut script =
            "flush set bridge part cut\nflush set bridge part udp_cut\nflush chain bridge part loss\n".to_owned();
        for (set, ways) in [("cut", &self.cut), ("udp_cut", &self.udp_cut)] {
            let ways: Vec<String> =
                ways.iter().map(|(from, to)| format!("\"{}\" . \"{}\"", link(*from), link(*to))).collect();
            if !ways.is_empty() {
                let _ = writeln!(script, "add element bridge part {set} {{ {} }}", ways.join(", "));
            }
        }
        if self.loss_percent > 0 {
            let percent = self.loss_percent;
            let _ = writeln!(script, "add rule bridge part loss numgen random mod 100 < {percent} counter drop");
        }
        script
    }
}

/// All faults there are: of links, and members that do not run or are stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Of links.
    pub faults: Faults,
    /// Members that answer nobody.
    pub down: BTreeSet<usize>,
}

impl Picture {
    /// Whether `a` can have an answer from `b`.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        a == b || !self.down.contains(&b) && !self.faults.separated(a, b)
    }

    /// Whom member `a` of so many must suspect.
    pub fn suspects(&self, a: usize, members: usize) -> BTreeSet<usize> {
        (0..members).filter(|b| !self.reaches(a, *b)).collect()
    }

    /// The shards of which member `a` reaches no copy; `copies` says who holds each.
    pub fn missing(&self, a: usize, copies: &[Vec<usize>]) -> BTreeSet<usize> {
        may_miss(&[self], a, copies)
    }
}

/// The shards of which member `a` may reach no copy while it takes parts of any of these pictures for what there is.
pub fn may_miss(pictures: &[&Picture], a: usize, copies: &[Vec<usize>]) -> BTreeSet<usize> {
    let in_doubt = |b: usize| pictures.iter().any(|picture| !picture.reaches(a, b));
    let lacks = |holders: &[usize]| holders.iter().all(|b| in_doubt(*b));
    copies.iter().enumerate().filter(|(_, holders)| lacks(holders)).map(|(shard, _)| shard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[usize]) -> BTreeSet<usize> {
        of.iter().copied().collect()
    }

    fn picture(faults: Faults) -> Picture {
        Picture { faults, down: BTreeSet::new() }
    }

    #[test]
    fn halves_suspect_each_other_wholly_and_themselves_not_at_all() {
        for faults in [Faults::none().between(&[0, 1, 2], &[3, 4]), Faults::none().udp_between(&[0, 1, 2], &[3, 4])] {
            let picture = picture(faults);
            assert_eq!(picture.suspects(0, 5), set(&[3, 4]));
            assert_eq!(picture.suspects(4, 5), set(&[0, 1, 2]));
        }
    }

    #[test]
    fn a_way_that_is_cut_separates_both_ends() {
        let picture = picture(Faults::none().one_way(0, &[1, 2]));
        assert_eq!(picture.suspects(0, 4), set(&[1, 2]));
        assert_eq!(picture.suspects(1, 4), set(&[0]));
        assert_eq!(picture.suspects(3, 4), set(&[]));
    }

    #[test]
    fn loss_alone_makes_no_suspect_and_a_member_that_is_down_is_suspected_by_all() {
        let mut picture = picture(Faults::none().loss(10));
        assert!((0..5).all(|a| picture.suspects(a, 5).is_empty()));
        picture.down.insert(2);
        assert!([0, 1, 3, 4].iter().all(|a| picture.suspects(*a, 5) == set(&[2])));
    }

    #[test]
    fn shards_are_missing_where_no_copy_is_reached() {
        let copies = [vec![0, 1], vec![1, 2], vec![2, 0]];
        let picture = picture(Faults::none().between(&[0], &[1, 2]));
        assert_eq!(picture.missing(0, &copies), set(&[1]));
        assert_eq!(picture.missing(1, &copies), set(&[]));
    }

    #[test]
    fn while_a_cut_moves_both_its_places_may_be_believed() {
        let copies = [vec![1, 2], vec![2, 3], vec![0, 1]];
        let (before, now) = (picture(Faults::none().between(&[0], &[1])), picture(Faults::none().between(&[0], &[2])));
        assert_eq!((before.missing(0, &copies), now.missing(0, &copies)), (set(&[]), set(&[])));
        assert_eq!(may_miss(&[&before, &now], 0, &copies), set(&[0]));
    }

    #[test]
    fn script_begins_anew_and_names_every_way() {
        let script = Faults::none().one_way(0, &[1]).udp_between(&[2], &[3]).loss(10).script();
        assert!(script.starts_with("flush set bridge part cut\n"));
        assert!(script.contains("add element bridge part cut { \"v1\" . \"v2\" }\n"), "{script}");
        assert!(script.contains("add element bridge part udp_cut { \"v3\" . \"v4\", \"v4\" . \"v3\" }\n"), "{script}");
        assert!(script.ends_with("numgen random mod 100 < 10 counter drop\n"));
        assert!(!Faults::none().script().contains("add"));
    }
}
