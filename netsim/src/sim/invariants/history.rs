//! What clients of the ledger saw, checked as they see it: every key behaves as one register in one place.
//!
//! Source: linearizability (Herlihy and Wing 1990), for registers whose versions count the changes, which makes the check
//! simple: versions of a key never go back between two requests of which one ended before the other began, and one
//! version has one value. Must not know: how the ledger works.

use std::collections::BTreeMap;

use super::Broken;

/// A request of a client, by number.
pub type Request = u64;

#[derive(Debug)]
struct Open {
    key: String,
    // No answer may show an older version than what was known to have been written when the request was sent.
    floor: u64,
    writes: Option<(u64, String)>,
}

/// What all clients saw.
#[derive(Debug, Default)]
pub struct History {
    open: BTreeMap<Request, Open>,
    // Of each key: the highest version that some client has been told of, and the values seen by version.
    known: BTreeMap<String, u64>,
    values: BTreeMap<(String, u64), String>,
    // Which request's own change was told to have made a version.
    makers: BTreeMap<(String, u64), Request>,
    // Of each key, version and value that somebody asked for: how many of these changes may have been made, or may be yet.
    possible: BTreeMap<(String, u64, String), u32>,
}

impl History {
    /// A client reads.
    pub fn read(&mut self, request: Request, key: &str) {
        self.begin(request, key, None);
    }

    /// A client changes a key that it expects at a version.
    pub fn change(&mut self, request: Request, key: &str, expected: u64, value: &str) {
        *self.possible.entry((key.to_owned(), expected + 1, value.to_owned())).or_default() += 1;
        self.begin(request, key, Some((expected, value.to_owned())));
    }

    fn begin(&mut self, request: Request, key: &str, writes: Option<(u64, String)>) {
        let floor = self.known.get(key).copied().unwrap_or(0);
        self.open.insert(request, Open { key: key.to_owned(), floor, writes });
    }

    /// The change was made, as this version.
    ///
    /// # Errors
    /// [`Broken`] if that can't be.
    pub fn changed(&mut self, request: Request, version: u64) -> Result<(), Broken> {
        let Some(open) = self.open.remove(&request) else { return Ok(()) };
        let Some((expected, value)) = &open.writes else {
            return Err(Broken::new(
                "answers_fit_requests",
                format!("a read of {} was answered as a change", open.key),
            ));
        };
        if version != expected + 1 {
            let what = format!("{}: expected version {expected}, changed to {version}", open.key);
            return Err(Broken::new("a_change_adds_one", what));
        }
        if let Some(other) = self.makers.insert((open.key.clone(), version), request) {
            let what = format!("{} version {version} was made by requests {other} and {request}", open.key);
            return Err(Broken::new("one_change_a_version", what));
        }
        let value = value.clone();
        self.saw(&open, version, Some(&value))
    }

    /// The key stands at this version: a read's answer, or a conflict's. 0 and no value: there is nothing yet.
    ///
    /// # Errors
    /// [`Broken`] if that can't be.
    pub fn stands(&mut self, request: Request, version: u64, value: Option<&str>) -> Result<(), Broken> {
        let Some(open) = self.open.remove(&request) else { return Ok(()) };
        self.saw(&open, version, value)
    }

    /// The answer says that the change was not made and will never be; it is told to one of the others next.
    ///
    /// # Errors
    /// [`Broken`] if somebody holds its value for chosen, and nobody else can have made it.
    pub fn not_done(&mut self, request: Request) -> Result<(), Broken> {
        let Some(Open { key, writes: Some((expected, value)), .. }) = self.open.get(&request) else { return Ok(()) };
        let wanted = (key.clone(), expected + 1, value.clone());
        let left = self.possible.get_mut(&wanted).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        let (key, version, value) = wanted;
        if left == 0 && self.values.get(&(key.clone(), version)) == Some(&value) {
            return Err(nobody_made(&key, version, &value));
        }
        Ok(())
    }

    /// No answer, or one that says that nothing was done.
    pub fn gone(&mut self, request: Request) {
        self.open.remove(&request);
    }

    fn saw(&mut self, open: &Open, version: u64, value: Option<&str>) -> Result<(), Broken> {
        if version < open.floor {
            let what = format!("{}: {} was told before the request, the answer is {version}", open.key, open.floor);
            return Err(Broken::new("answers_never_go_back", what));
        }
        self.value(&open.key, version, value)?;
        let known = self.known.entry(open.key.clone()).or_default();
        *known = version.max(*known);
        Ok(())
    }

    /// Somebody holds this value to be the chosen one of this version.
    ///
    /// # Errors
    /// [`Broken`] if somebody else holds another.
    pub fn value(&mut self, key: &str, version: u64, value: Option<&str>) -> Result<(), Broken> {
        let Some(value) = value else {
            let what = format!("{key} version {version} has no value");
            return if version == 0 { Ok(()) } else { Err(Broken::new("one_value_a_version", what)) };
        };
        match self.values.get(&(key.to_owned(), version)) {
            Some(before) if before != value => {
                let what = format!("{key} version {version} is `{}` and `{}`", cut(before), cut(value));
                Err(Broken::new("one_value_a_version", what))
            }
            Some(_) => Ok(()),
            None if self.possible.get(&(key.to_owned(), version, value.to_owned())) == Some(&0) => {
                Err(nobody_made(key, version, value))
            }
            None => {
                self.values.insert((key.to_owned(), version), value.to_owned());
                Ok(())
            }
        }
    }
}

fn nobody_made(key: &str, version: u64, value: &str) -> Broken {
    let what = format!("{key} version {version} is `{}`, and all who asked for that were told it is not", cut(value));
    Broken::new("what_is_not_done_is_never_chosen", what)
}

fn cut(text: &str) -> &str {
    text.get(..120).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_register_does_passes() {
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.read(2, "k");
        h.changed(1, 1).unwrap();
        h.stands(2, 0, None).unwrap();
        h.read(3, "k");
        h.stands(3, 1, Some("a")).unwrap();
    }

    #[test]
    fn a_read_of_the_past_is_found() {
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.changed(1, 1).unwrap();
        h.read(2, "k");
        assert_eq!(h.stands(2, 0, None).unwrap_err().name, "answers_never_go_back");
    }

    #[test]
    fn two_changes_of_one_version_are_found() {
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.change(2, "k", 0, "b");
        h.changed(1, 1).unwrap();
        assert_eq!(h.changed(2, 1).unwrap_err().name, "one_change_a_version");
    }

    #[test]
    fn a_value_of_a_change_that_was_not_made_is_found_whatever_is_told_first() {
        let name = "what_is_not_done_is_never_chosen";
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.not_done(1).unwrap();
        h.gone(1);
        assert_eq!(h.value("k", 1, Some("a")).unwrap_err().name, name);
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.value("k", 1, Some("a")).unwrap();
        assert_eq!(h.not_done(1).unwrap_err().name, name);
        // Another change of the same may have made it.
        let mut h = History::default();
        h.change(1, "k", 0, "a");
        h.change(2, "k", 0, "a");
        h.not_done(1).unwrap();
        h.gone(1);
        h.value("k", 1, Some("a")).unwrap();
        assert_eq!(h.not_done(2).unwrap_err().name, name);
    }

    #[test]
    fn two_values_of_one_version_are_found() {
        let mut h = History::default();
        h.value("k", 1, Some("a")).unwrap();
        assert_eq!(h.value("k", 1, Some("b")).unwrap_err().name, "one_value_a_version");
    }
}
