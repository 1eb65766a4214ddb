//! The time at which a line was read, as the log has it: RFC 3339 in UTC with nanoseconds, made without allocating.

/// `2026-01-31T23:59:59.000000001Z`
pub(crate) const LENGTH: usize = 30;

/// The text of a time since 1970.
pub(crate) fn format(seconds: i64, nanoseconds: u32) -> [u8; LENGTH] {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let fields: [(usize, usize, u32); 7] = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 9, nanoseconds),
    ];
    for (start, width, mut value) in fields {
        for place in text[start..start + width].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    text
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar.
///
/// Years begin in March here, so that the leap day is the last of its year; an era is 400 years.
fn date(days: i64) -> (u32, u32, u32) {
    const DAYS_PER_ERA: i64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year as u32, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_have_known_texts() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_799, 999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (1_735_689_599, 5, "2024-12-31T23:59:59.000000005Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&format(seconds, nanoseconds)).unwrap(), text);
        }
    }

    #[test]
    fn days_follow_each_other() {
        let mut last = date(-1);
        for day in 0..100_000 {
            let next = date(day);
            assert!(next > last && (next.2 == last.2 + 1 || next.2 == 1), "{last:?} then {next:?}");
            last = next;
        }
    }
}
