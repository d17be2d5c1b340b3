//! Wall-clock times as clients read them, and the clock that leases go by. Order and deadlines never come from the former.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Now, RFC 3339 in UTC, as Meilisearch writes it.
pub fn now_rfc3339() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("a time of this age has an RFC 3339 form")
}

/// The time so long after now, in the same form; for people.
pub fn rfc3339_after(span: Duration) -> String {
    let then = time::Duration::try_from(span).ok().and_then(|span| OffsetDateTime::now_utc().checked_add(span));
    then.and_then(|then| then.format(&Rfc3339).ok()).unwrap_or_else(now_rfc3339)
}

/// A time in seconds since 1970, in the same form; for people.
pub fn rfc3339_at(unix_seconds: u64) -> String {
    let then = i64::try_from(unix_seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    then.and_then(|then| then.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_seconds} s after 1970"))
}

/// The time since the machine was started, sleep included (CLOCK_BOOTTIME). Never goes back; says nothing to other machines.
pub fn since_boot() -> Duration {
    // The kernel's clocks count up from zero.
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// The time since 1970 by the wall clock; zero before that.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970 by the wall clock; 0 before that.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The ISO 8601 duration between two RFC 3339 times, as Meilisearch writes it; `None` if one of them is none.
pub fn between(from: &str, to: &str) -> Option<String> {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339).ok();
    let span = parse(to)? - parse(from)?;
    let span = span.max(time::Duration::ZERO);
    Some(format!("PT{}.{:09}S", span.whole_seconds(), span.subsec_nanoseconds()))
}

/// The later of two RFC 3339 times; what is none is earlier than any.
pub fn later<'a>(a: &'a str, b: &'a str) -> &'a str {
    let parse = |text| OffsetDateTime::parse(text, &Rfc3339).ok();
    if parse(b) > parse(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_times_is_told_whatever_their_digits() {
        let (short, long) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:01.5Z");
        assert_eq!((later(short, long), later(long, short), later(short, "")), (long, long, short));
    }

    #[test]
    fn a_duration_reads_as_the_nodes_do() {
        let at = |s| format!("2026-01-01T00:{s}Z");
        assert_eq!(between(&at("00:00.5"), &at("01:10.503910633")).unwrap(), "PT70.003910633S");
        assert_eq!(between(&at("00:02"), &at("00:01")).unwrap(), "PT0.000000000S");
        assert_eq!(between("x", &at("00:00")), None);
        assert!(between(&now_rfc3339(), &now_rfc3339()).is_some());
    }
}
