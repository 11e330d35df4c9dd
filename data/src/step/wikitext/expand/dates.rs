//! `#time`: dates as PHP reads them and as its format letters write them.

use super::numbers::roman;
use crate::text::calendar::{MONTHS, WEEKDAYS};

/// Longest date that is read, in bytes.
const LONGEST_DATE: usize = 100;
const DAY: i64 = 86_400;

/// A moment, without a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub year: i64,
    pub month: i64,
    pub day: i64,
    /// Seconds of the day.
    pub seconds: i64,
}

/// Why a date cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DateProblem {
    /// MediaWiki says that it is none.
    Invalid,
    /// It is in a form that is not read here.
    Unknown,
}

/// Year, month and day.
type Date = (i64, i64, i64);

/// Days from 1970 to a date of the Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years from March on, so that a leap day is the last of one.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn days_in(year: i64, month: i64) -> i64 {
    let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days_of(next.0, next.1, 1) - days_of(year, month, 1)
}

impl Moment {
    /// The moment of a time stamp as a dump has it: `2022-07-01T00:00:00Z`.
    pub fn of_stamp(stamp: &str) -> Option<Self> {
        let (date, time) = stamp.trim_end_matches('Z').split_once('T')?;
        let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        Self::of(year, month, day, clock(time).unwrap_or(0))
    }

    fn of(year: i64, month: i64, day: i64, seconds: i64) -> Option<Self> {
        let valid = (0..=9999).contains(&year) && (1..=12).contains(&month);
        let valid = valid && (1..=31).contains(&day) && (0..DAY).contains(&seconds);
        valid.then_some(Self { year, month, day, seconds }.carried(0))
    }

    /// This moment and so many seconds: the 31st of a month with 30 days is the 1st of the next.
    fn carried(self, seconds: i64) -> Self {
        Self::of_unix(self.unix().saturating_add(seconds))
    }

    fn unix(self) -> i64 {
        days_of(self.year, self.month, self.day) * DAY + self.seconds
    }

    fn of_unix(seconds: i64) -> Self {
        // Years 0 to 9999 and a little more: nothing else is written.
        let seconds = seconds.clamp(-70_000_000_000, 260_000_000_000);
        let days = seconds.div_euclid(DAY);
        // Not after the year that is looked for, however many of those between are leap years.
        let mut year = 1970 + days.div_euclid(if days < 0 { 365 } else { 366 });
        while days_of(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_of(year, month + 1, 1) <= days {
            month += 1;
        }
        let day = days - days_of(year, month, 1) + 1;
        Self { year, month, day, seconds: seconds.rem_euclid(DAY) }
    }

    fn weekday(self) -> i64 {
        (days_of(self.year, self.month, self.day) + 4).rem_euclid(7)
    }

    fn day_of_year(self) -> i64 {
        days_of(self.year, self.month, self.day) - days_of(self.year, 1, 1)
    }

    /// Year and number of the week by ISO 8601: the week belongs to the year of its Thursday.
    fn week(self) -> (i64, i64) {
        let monday = (self.weekday() + 6) % 7;
        let thursday = self.carried((3 - monday) * DAY);
        (thursday.year, thursday.day_of_year() / 7 + 1)
    }
}

/// `12:30` or `12:30:05` in seconds.
fn clock(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    let valid = (0..24).contains(&hour) && (0..60).contains(&minute) && (0..60).contains(&second);
    valid.then_some(hour * 3600 + minute * 60 + second)
}

fn month_of(word: &str) -> Option<i64> {
    let word = word.trim_end_matches('.').to_ascii_lowercase();
    let word = if word == "sept" { "sep" } else { word.as_str() };
    let is = |name: &&str| {
        let name = name.to_ascii_lowercase();
        name == word || word.len() == 3 && name.starts_with(word)
    };
    MONTHS.iter().position(is).map(|at| at as i64 + 1)
}

/// Reads a date; what it leaves out is that of `now`, the hours are 0.
///
/// # Errors
/// [`DateProblem`].
pub(super) fn parse(text: &str, now: Option<Moment>) -> Result<Moment, DateProblem> {
    let text = text.trim();
    if text.len() > LONGEST_DATE {
        return Err(DateProblem::Invalid);
    }
    let now = || now.ok_or(DateProblem::Unknown);
    if text.is_empty() {
        return now();
    }
    if let Some(unix) = text.strip_prefix('@') {
        return unix.parse().map(Moment::of_unix).map_err(|_| DateProblem::Invalid);
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| DateProblem::Invalid);
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits && matches!(text.len(), 8 | 14) {
        let seconds = match text.get(8..14).filter(|time| !time.is_empty()) {
            Some(time) => clock(&format!("{}:{}:{}", &time[..2], &time[2..4], &time[4..])),
            None => Some(0),
        };
        let date = (number(&text[..4])?, number(&text[4..6])?, number(&text[6..8])?);
        let moment = seconds.and_then(|seconds| Moment::of(date.0, date.1, date.2, seconds));
        return moment.ok_or(DateProblem::Invalid);
    }
    let (mut year, mut month, mut day, mut time) = (None, None, None, None);
    let mut shift = Shift::default();
    let spaced = text.replace(',', " ");
    let mut words = spaced.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let lower = word.to_ascii_lowercase();
        let ordinal = ["st", "nd", "rd", "th"].iter().find_map(|end| lower.strip_suffix(end));
        let plain = ordinal.unwrap_or(&lower).trim_end_matches('.');
        // A second sign is none: `i64` would take it.
        let unsigned = lower.strip_prefix(['+', '-']).filter(|n| !n.starts_with(['+', '-']));
        if let Some(amount) = unsigned.and_then(|n| n.parse::<i64>().ok()) {
            let amount = if lower.starts_with('-') { -amount } else { amount };
            shift.add(amount, words.next().ok_or(DateProblem::Invalid)?)?;
        } else if let (true, Ok(value)) = (plain.bytes().all(|b| b.is_ascii_digit()), plain.parse())
        {
            match plain.len() {
                1 | 2 if words.peek().is_some_and(|unit| Shift::is_unit(unit)) => {
                    shift.add(value, words.next().unwrap_or_default())?;
                }
                1 | 2 if day.is_none() => day = Some(value),
                4 if year.is_none() => year = Some(value),
                _ => return Err(DateProblem::Invalid),
            }
        } else if let Some(found) = month_of(&lower) {
            month = Some(found);
        } else if let Some(found) = clock(&lower) {
            time = Some(found);
        } else if let Some((date, clock)) = numeric_date(&lower) {
            (year, month, day) = (Some(date.0), Some(date.1), Some(date.2));
            time = clock.or(time);
        } else {
            match lower.as_str() {
                "now" => time = Some(now()?.seconds),
                "today" | "midnight" | "utc" | "gmt" | "z" | "of" => {}
                "tomorrow" => shift.add(1, "day")?,
                "yesterday" => shift.add(-1, "day")?,
                "noon" => time = Some(DAY / 2),
                word if word.len() > 2
                    && WEEKDAYS.iter().any(|day| day.to_ascii_lowercase().starts_with(word)) =>
                {
                    if day.is_none() && year.is_none() && month.is_none() && words.peek().is_none()
                    {
                        return Err(DateProblem::Unknown);
                    }
                }
                "ago" | "next" | "last" | "previous" | "this" | "first" | "am" | "pm" => {
                    return Err(DateProblem::Unknown);
                }
                _ => return Err(DateProblem::Invalid),
            }
        }
    }
    // A month without a day begins on its first; anything else that is left out is as it is now.
    let year = year.map_or_else(|| now().map(|now| now.year), Ok)?;
    let (month, day) = match (month, day) {
        (Some(month), day) => (month, day.unwrap_or(1)),
        (None, Some(_)) => return Err(DateProblem::Invalid),
        (None, None) => (now()?.month, now()?.day),
    };
    let moment = Moment::of(year, month, day, time.unwrap_or(0)).ok_or(DateProblem::Invalid)?;
    Ok(shift.apply(moment))
}

/// A date in digits, perhaps with the time behind a `T`: years first, days first with points or
/// hyphens, months first with slashes.
fn numeric_date(word: &str) -> Option<(Date, Option<i64>)> {
    let (date, time) = match word.split_once('t') {
        Some((date, time)) => (date, Some(clock(time.trim_end_matches('z'))?)),
        None => (word, None),
    };
    let sign = date.chars().find(|c| !c.is_ascii_digit()).filter(|c| "-/.".contains(*c))?;
    let parts: Vec<&str> = date.split(sign).collect();
    let numbers: Option<Vec<i64>> = parts.iter().map(|part| part.parse().ok()).collect();
    let date = match (&numbers?[..], sign) {
        (&[year, month, day], '-' | '/') if parts[0].len() == 4 => (year, month, day),
        (&[year, month], '-' | '/') if parts[0].len() == 4 => (year, month, 1),
        (&[day, month, year], '.' | '-') if parts[2].len() == 4 => (year, month, day),
        (&[month, day, year], '/') if parts[2].len() == 4 => (year, month, day),
        _ => return None,
    };
    Some((date, time))
}

/// What is added to a date: `+1 month`.
#[derive(Default)]
struct Shift {
    months: i64,
    seconds: i64,
}

impl Shift {
    fn is_unit(word: &str) -> bool {
        let unit = word.trim_end_matches('s');
        matches!(unit, "day" | "week" | "month" | "year" | "hour" | "minute" | "second")
    }

    fn add(&mut self, amount: i64, unit: &str) -> Result<(), DateProblem> {
        if amount.abs() > 100_000 {
            return Err(DateProblem::Invalid);
        }
        match unit.to_ascii_lowercase().trim_end_matches('s') {
            "year" => self.months += 12 * amount,
            "month" => self.months += amount,
            "week" => self.seconds += 7 * DAY * amount,
            "day" => self.seconds += DAY * amount,
            "hour" => self.seconds += 3600 * amount,
            "minute" | "min" => self.seconds += 60 * amount,
            "second" | "sec" => self.seconds += amount,
            _ => return Err(DateProblem::Invalid),
        }
        Ok(())
    }

    fn apply(&self, moment: Moment) -> Moment {
        let months = moment.year * 12 + moment.month - 1 + self.months;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        Moment { year: year.clamp(-200, 10_200), month, ..moment }.carried(self.seconds)
    }
}

/// Names for a language: months as they stand in a date; weekdays in English alone.
pub(super) struct Names<'a> {
    pub months: &'a [String],
    pub english: bool,
}

/// Writes `moment` by PHP's letters and MediaWiki's own.
///
/// # Errors
/// [`DateProblem::Unknown`] for a name that is known in English alone.
pub(super) fn format(
    pattern: &str,
    moment: Moment,
    names: &Names<'_>,
) -> Result<String, DateProblem> {
    let mut out = String::new();
    let mut letters = pattern.chars().peekable();
    let mut as_roman = false;
    while let Some(letter) = letters.next() {
        let (hour, minute) = (moment.seconds / 3600, moment.seconds / 60 % 60);
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        let month = || {
            let at = moment.month as usize - 1;
            names.months.get(at).cloned().unwrap_or_else(|| MONTHS[at].to_owned())
        };
        let short = |name: &str| match names.english {
            true => Ok(name[..3].to_owned()),
            false => Err(DateProblem::Unknown),
        };
        let weekday = WEEKDAYS[moment.weekday() as usize];
        let leap = days_in(moment.year, 2) == 29;
        let number: i64 = match letter {
            'j' => moment.day,
            'n' => moment.month,
            'Y' => moment.year,
            'w' => moment.weekday(),
            'N' => (moment.weekday() + 6) % 7 + 1,
            'z' => moment.day_of_year(),
            't' => days_in(moment.year, moment.month),
            'L' => i64::from(leap),
            'g' => twelve,
            'G' => hour,
            'U' => moment.unix(),
            'o' => moment.week().0,
            _ => {
                match letter {
                    'd' => out += &format!("{:02}", moment.day),
                    'm' => out += &format!("{:02}", moment.month),
                    'y' => out += &format!("{:02}", moment.year % 100),
                    'W' => out += &format!("{:02}", moment.week().1),
                    'h' => out += &format!("{twelve:02}"),
                    'H' => out += &format!("{hour:02}"),
                    'i' => out += &format!("{minute:02}"),
                    's' => out += &format!("{:02}", moment.seconds % 60),
                    'a' => out += if hour < 12 { "am" } else { "pm" },
                    'A' => out += if hour < 12 { "AM" } else { "PM" },
                    'F' => out += &month(),
                    'M' => out += &short(MONTHS[moment.month as usize - 1])?,
                    'D' => out += &short(weekday)?,
                    'l' if names.english => out += weekday,
                    'l' => return Err(DateProblem::Unknown),
                    'e' | 'T' => out += "UTC",
                    'P' => out += "+00:00",
                    'O' => out += "+0000",
                    'Z' | 'I' => out.push('0'),
                    'c' => out += &format("Y-m-d\\TH:i:sP", moment, names)?,
                    'r' => {
                        let english = Names { months: &[], english: true };
                        out += &format("D, d M Y H:i:s O", moment, &english)?;
                    }
                    'x' => match letters.next() {
                        Some('n' | 'N') => {}
                        Some('r') => as_roman = true,
                        Some('g') => out += &month(),
                        Some('x') => out.push('x'),
                        _ => return Err(DateProblem::Unknown),
                    },
                    '\\' => out.extend(letters.next().or(Some('\\'))),
                    '"' if letters.clone().any(|c| c == '"') => {
                        out.extend(letters.by_ref().take_while(|&c| c != '"'));
                    }
                    other => out.push(other),
                }
                continue;
            }
        };
        match roman(number).filter(|_| as_roman) {
            Some(numeral) => out += &numeral,
            None => out += &number.to_string(),
        }
        as_roman = false;
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ENGLISH: Names<'static> = Names { months: &[], english: true };

    fn now() -> Option<Moment> {
        Moment::of_stamp("2012-03-04T05:06:07Z")
    }

    #[test]
    fn dates_are_read_as_php_does() {
        for (text, expected) in [
            ("", "2012-03-04 05:06:07"),
            ("2010-05-03", "2010-05-03 00:00:00"),
            ("2010-05-03T12:30:00Z", "2010-05-03 12:30:00"),
            ("2010-05", "2010-05-01 00:00:00"),
            ("2010/05/03", "2010-05-03 00:00:00"),
            ("3 May 2010", "2010-05-03 00:00:00"),
            ("3rd May 2010", "2010-05-03 00:00:00"),
            ("May 3, 2010", "2010-05-03 00:00:00"),
            ("Sept 2010", "2010-09-01 00:00:00"),
            ("Monday, 3 May 2010 14:05", "2010-05-03 14:05:00"),
            ("3.5.2010", "2010-05-03 00:00:00"),
            ("5/3/2010", "2010-05-03 00:00:00"),
            ("20100503", "2010-05-03 00:00:00"),
            ("20100503123005", "2010-05-03 12:30:05"),
            ("1999", "1999-03-04 00:00:00"),
            ("1 January", "2012-01-01 00:00:00"),
            ("@86400", "1970-01-02 00:00:00"),
            ("31 April 2010", "2010-05-01 00:00:00"),
            ("2010-01-31 +1 month", "2010-03-03 00:00:00"),
            ("2010-01-31 -1 day", "2010-01-30 00:00:00"),
            ("1 March 2012 - 1 day", ""),
            ("now", "2012-03-04 05:06:07"),
            ("tomorrow", "2012-03-05 00:00:00"),
            ("0044-03-15", "44-03-15 00:00:00"),
        ] {
            let shown = parse(text, now()).map(|moment| format("Y-m-d H:i:s", moment, &ENGLISH));
            let shown = shown.ok().map_or(String::new(), |shown| shown.unwrap());
            assert_eq!(shown, expected, "{text}");
        }
        for text in [
            "no date",
            "2010-13-01",
            "32 May 2010",
            "5",
            "2010-01-01 --9223372036854775808 days",
            "2010-01-01 +-9223372036854775808 days",
            "-9223372036854775808 days",
            "2010-01-01 +9223372036854775807 days",
        ] {
            assert_eq!(parse(text, now()), Err(DateProblem::Invalid), "{text}");
        }
        assert_eq!(parse("May 3", None), Err(DateProblem::Unknown));
    }

    #[test]
    fn letters_are_those_of_php() {
        let moment = parse("2009-01-05 15:04:09", None).unwrap();
        for (pattern, expected) in [
            ("j F Y", "5 January 2009"),
            ("d M y", "05 Jan 09"),
            ("l, D N w", "Monday, Mon 1 1"),
            ("z t L W o", "4 31 0 02 2009"),
            ("g a G h A i s", "3 pm 15 03 PM 04 09"),
            ("U", "1231167849"),
            ("\\Y \"in\" Y", "Y in 2009"),
            ("xrY xrj", "MMIX V"),
            ("xg xx xnY", "January x 2009"),
            ("c", "2009-01-05T15:04:09+00:00"),
            ("r", "Mon, 05 Jan 2009 15:04:09 +0000"),
        ] {
            assert_eq!(format(pattern, moment, &ENGLISH).as_deref(), Ok(expected), "{pattern}");
        }
        let french = Names { months: &["janvier".to_owned()], english: false };
        assert_eq!(format("j F Y", moment, &french).as_deref(), Ok("5 janvier 2009"));
        assert_eq!(format("l", moment, &french), Err(DateProblem::Unknown));
        let leap = parse("2012-12-31", None).unwrap();
        assert_eq!(format("z L W o", leap, &ENGLISH).as_deref(), Ok("365 1 01 2013"));
    }
}
