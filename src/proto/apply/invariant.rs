//! What must hold of one applier at any time, checked always: a broken one means that this process must not go on.
//!
//! Must not know: how it came to be so.

use std::collections::BTreeMap;

use super::core::Applier;
use super::notes::State;

impl Applier {
    /// # Panics
    /// If the applier contradicts itself.
    pub fn check(&self) {
        let mut with_node: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut sent = 0;
        for (id, note) in self.notes.rows() {
            sent += usize::from(note.state == State::Sent);
            assert!(*id < self.notes.next, "a note's number is handed out again");
            if note.entries > 0 && (note.is_open() || note.state == State::Sent) {
                for span in &note.spans {
                    assert!(span.first <= span.last, "an empty span was sent");
                    with_node.entry(span.shard).or_default().push((note.kind.is_conditional(), span));
                }
            }
        }
        assert!(sent <= 1, "two requests whose fate is not known");
        for (shard, lane) in &self.lanes {
            let row = &lane.row;
            assert!(lane.next > row.applied, "an applied entry would be sent again");
            assert!(
                row.told.range(..=row.applied).next().is_none(),
                "a verdict on an applied entry is looked into too late"
            );
            for (i, head) in lane.heads.iter().enumerate() {
                assert_eq!(head.seq, row.applied + 1 + i as u64, "heads have gaps");
                assert!(head.seq <= lane.committed, "an entry that is not committed");
            }
            let Some(spans) = with_node.get(shard) else { continue };
            assert!(
                spans.len() == 1 || spans.iter().all(|(conditional, _)| !conditional),
                "a conditional entry among others"
            );
        }
    }
}
