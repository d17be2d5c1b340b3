//! Times by the wall clock, as clients read and write them.
//!
//! Rule: they are for people and for the filters of a list; nothing is decided by comparing those of two members but how
//! long a finished task is kept. Must not know: which time it is.

use serde::{Deserialize, Serialize};
use time::format_description;
use time::format_description::well_known::Rfc3339;
use time::{Date, Duration, OffsetDateTime};

/// Nanoseconds since 1970 in UTC; until the year 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct When(pub i64);

impl When {
    /// Reads an RFC 3339 time; one out of range becomes the nearest.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(Self::of)
    }

    /// The end of a span that a client names: an RFC 3339 time, or a date alone. That stands for its first instant, or with
    /// `next_day` for the first of the following day.
    pub fn parse_bound(text: &str, next_day: bool) -> Option<Self> {
        if let Some(when) = Self::parse(text) {
            return Some(when);
        }
        let date = Date::parse(text, &format_description::parse_borrowed::<2>("[year]-[month]-[day]").ok()?).ok()?;
        let first = date.midnight().assume_utc();
        let bound = if next_day { first.checked_add(Duration::DAY) } else { Some(first) };
        Some(bound.map_or(Self(i64::MAX), Self::of))
    }

    fn of(time: OffsetDateTime) -> Self {
        let nanos = time.unix_timestamp_nanos();
        Self(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
    }

    /// So many nanoseconds after 1970.
    pub fn since_1970(span: std::time::Duration) -> Self {
        Self(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX))
    }

    /// As Meilisearch writes it.
    pub fn text(self) -> String {
        let time = OffsetDateTime::from_unix_timestamp_nanos(self.0.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        time.format(&Rfc3339).unwrap_or_default()
    }

    /// The ISO 8601 duration from `self` to `end`, as Meilisearch writes it; none is negative.
    pub fn duration_until(self, end: Self) -> String {
        let nanos = (i128::from(end.0) - i128::from(self.0)).max(0);
        format!("PT{}.{:09}S", nanos / 1_000_000_000, nanos % 1_000_000_000)
    }

    /// Earlier by `span`.
    #[must_use]
    pub fn minus(self, span: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_a_node_writes_them() {
        for text in ["2026-11-21T20:54:20.87967661Z", "2026-01-01T00:00:00Z", "1969-12-31T23:59:59.5Z"] {
            assert_eq!(When::parse(text).unwrap().text(), text);
        }
        assert_eq!(When::parse("2020-01-01T01:00:00+01:00"), When::parse("2020-01-01T00:00:00Z"));
        assert_eq!(When::parse("9999-12-31T23:59:59-01:00"), Some(When(i64::MAX)));
        let (from, to) =
            (When::parse("2026-01-01T00:00:00.5Z").unwrap(), When::parse("2026-01-01T00:01:10.503910633Z").unwrap());
        assert_eq!(from.duration_until(to), "PT70.003910633S");
        assert_eq!(to.duration_until(from), "PT0.000000000S");
    }

    #[test]
    fn bounds_are_what_a_node_takes() {
        let midnight = When::parse("2020-01-01T00:00:00Z");
        for text in ["2020-01-01", "+2020-01-01", "2020-01-01t00:00:00z", "2020-01-01 00:00:00Z"] {
            assert_eq!(When::parse_bound(text, false), midnight, "{text}");
        }
        assert_eq!(When::parse_bound("2019-12-31", true), midnight);
        for text in
            ["-0001-01-01", "0000-01-01", "9999-12-31", "2016-12-31T23:59:60Z", "2020-01-01T00:00:00.123456789123Z"]
        {
            assert!(When::parse_bound(text, true).is_some(), "{text}");
        }
        for text in [
            "",
            "x",
            "*,*",
            "1,2",
            " 2020-01-01",
            "20200101",
            "10000-01-01",
            "2020-1-1",
            "2020-02-30",
            "2020-13-01",
            "2020-01-01T00:00:00",
            "2020-01-01T00:00Z",
            "2020-01-01T24:00:00Z",
            "2020-01-01T00:00:00 01:00",
        ] {
            assert_eq!(When::parse_bound(text, false), None, "{text}");
        }
    }
}
