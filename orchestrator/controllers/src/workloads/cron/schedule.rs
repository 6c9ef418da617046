//! When a CronJob is due.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// More missed times than these are too many to be right.
const TOO_MANY: usize = 100;

/// `spec.schedule` in `spec.timeZone`.
#[derive(Clone, Debug)]
pub(crate) enum Schedule {
    /// Five fields, or a name for them such as `@daily`.
    Fields(Box<Cron>, TimeZone),
    /// `@every 90m`: counted from the last time.
    Every(SignedDuration),
}

/// Why there is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSchedule {
    #[error("unparseable schedule: {text:?} : {cause}")]
    Text { text: String, cause: String },
    #[error("invalid timezone: {0:?}: unknown time zone")]
    Zone(String),
}

impl BadSchedule {
    /// The reason of the Event.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Text { .. } => "UnparseableSchedule",
            Self::Zone(_) => "UnknownTimeZone",
        }
    }
}

impl Schedule {
    /// Reads a schedule. Without a zone it is in UTC: the server's own zone must not decide.
    pub(crate) fn parse(text: &str, zone: Option<&str>) -> Result<Self, BadSchedule> {
        let zone = match zone {
            None | Some("") => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| BadSchedule::Zone(name.to_owned()))?,
        };
        let bad = |cause: String| BadSchedule::Text {
            text: text.to_owned(),
            cause,
        };
        if let Some(every) = text.strip_prefix("@every ") {
            let every: SignedDuration = every
                .trim()
                .parse()
                .map_err(|error: jiff::Error| bad(error.to_string()))?;
            return match every >= SignedDuration::from_secs(1) {
                true => Ok(Self::Every(SignedDuration::from_secs(every.as_secs()))),
                false => Err(bad("shorter than a second".to_owned())),
            };
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(text).map_err(|error| bad(error.to_string()))?;
        Ok(Self::Fields(Box::new(cron), zone))
    }

    /// The first time after `after`; `None` if there is none.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Fields(cron, zone) => {
                let next = cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok()?;
                Some(next.timestamp())
            }
            Self::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
        }
    }

    /// The last time after `after` and not after `now`, and whether suspiciously many were missed.
    pub(crate) fn last_due(&self, after: Timestamp, now: Timestamp) -> Option<(Timestamp, bool)> {
        let first = self.next(after).filter(|it| *it <= now)?;
        let mut missed = 1;
        let mut last = first;
        while missed <= TOO_MANY {
            match self.next(last).filter(|it| *it <= now) {
                Some(next) => last = next,
                None => return Some((last, false)),
            }
            missed += 1;
        }
        let last = match self {
            Self::Fields(cron, zone) => {
                let last = cron.find_previous_occurrence(&now.to_zoned(zone.clone()), true);
                // There is one: the first.
                last.map_or(first, |it| it.timestamp())
            }
            Self::Every(every) => {
                let steps = now.duration_since(first).as_secs() / every.as_secs();
                let past = SignedDuration::from_secs(steps * every.as_secs());
                first.checked_add(past).unwrap_or(first)
            }
        };
        Some((last, true))
    }

    /// The zone that times are shown in.
    pub(crate) fn zone(&self) -> TimeZone {
        match self {
            Self::Fields(_, zone) => zone.clone(),
            Self::Every(_) => TimeZone::UTC,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, zone: Option<&str>, after: &str) -> Option<Timestamp> {
        Schedule::parse(schedule, zone).unwrap().next(at(after))
    }

    #[test]
    fn the_next_time() {
        let cases = [
            ("*/5 * * * *", None, "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"),
            ("@daily", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("30 9 * * mon-fri", None, "2026-01-02T10:00:00Z", "2026-01-05T09:30:00Z"),
            ("0 0 29 2 *", None, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            // Either day, if both are restricted.
            ("0 0 13 * 5", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            (
                "0 12 * * *",
                Some("Asia/Tokyo"),
                "2026-01-01T00:00:00Z",
                "2026-01-01T03:00:00Z",
            ),
            (
                "0 12 * * *",
                Some("Europe/Berlin"),
                "2026-07-01T00:00:00Z",
                "2026-07-01T10:00:00Z",
            ),
            ("@every 90m", None, "2026-01-01T00:00:00.5Z", "2026-01-01T01:30:00Z"),
        ];
        for (schedule, zone, after, expected) in cases {
            assert_eq!(next(schedule, zone, after), Some(at(expected)), "{schedule} {zone:?}");
        }
        assert_eq!(next("0 0 31 2 *", None, "2026-01-01T00:00:00Z"), None);
    }

    #[test]
    fn a_time_that_the_clock_skips_or_repeats_is_due_once() {
        let schedule = Schedule::parse("30 2 * * *", Some("Europe/Berlin")).unwrap();
        for (from, to) in [
            ("2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z"),
            ("2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
        ] {
            let mut times = Vec::new();
            let mut last = at(from);
            while let Some(next) = schedule.next(last).filter(|it| *it < at(to)) {
                times.push(next);
                last = next;
            }
            assert_eq!(times.len(), 2, "{times:?}");
        }
    }

    #[test]
    fn the_last_due_time() {
        let schedule = Schedule::parse("0 * * * *", None).unwrap();
        let due = |after: &str, now: &str| schedule.last_due(at(after), at(now));
        assert_eq!(due("2026-01-01T00:00:00Z", "2026-01-01T00:59:59Z"), None);
        assert_eq!(
            due("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            Some((at("2026-01-01T01:00:00Z"), false))
        );
        assert_eq!(
            due("2026-01-01T00:00:00Z", "2026-01-01T03:10:00Z"),
            Some((at("2026-01-01T03:00:00Z"), false))
        );
        assert_eq!(
            due("2026-01-01T00:00:00Z", "2026-02-01T03:10:00Z"),
            Some((at("2026-02-01T03:00:00Z"), true))
        );
        let every = Schedule::parse("@every 1m", None).unwrap();
        let last = every.last_due(at("2026-01-01T00:00:30Z"), at("2026-01-02T00:00:00Z"));
        assert_eq!(last, Some((at("2026-01-01T23:59:30Z"), true)));
    }

    #[test]
    fn what_is_no_schedule() {
        let reason = |text: &str, zone: Option<&str>| Schedule::parse(text, zone).unwrap_err().reason();
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "@every",
            "@every 1ms",
            "@never",
            "x",
        ] {
            assert_eq!(reason(text, None), "UnparseableSchedule", "{text}");
        }
        assert_eq!(reason("* * * * *", Some("Atlantis/Main")), "UnknownTimeZone");
    }
}
