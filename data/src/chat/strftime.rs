//! The function `strftime_now` of templates.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::source::rfc3339;
use crate::text::calendar::{MONTHS, WEEKDAYS};

/// The time now in UTC, as `format` says.
pub(super) fn strftime_now(format: &str) -> Result<String, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(now, format)
}

/// `seconds` since 1970 in UTC, with the directives of C's `strftime` that templates use.
fn strftime(seconds: u64, format: &str) -> Result<String, String> {
    let stamp = rfc3339(seconds);
    let (year, month, day) = (&stamp[..4], &stamp[5..7], &stamp[8..10]);
    let (hour, minute, second) = (&stamp[11..13], &stamp[14..16], &stamp[17..19]);
    let month_name = MONTHS[(month.parse::<usize>().unwrap_or(1) - 1) % 12];
    // The first day of 1970 was a Thursday.
    let day_name = WEEKDAYS[((seconds / 86400 + 4) % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next().unwrap_or('%');
        let unpadded = directive == '-';
        if unpadded {
            directive = chars.next().unwrap_or('-');
        }
        let text = match directive {
            'Y' => year.to_owned(),
            'y' => year[2..].to_owned(),
            'm' => month.to_owned(),
            'd' => day.to_owned(),
            'e' => format!("{:>2}", day.trim_start_matches('0')),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'H' => hour.to_owned(),
            'I' => format!("{:02}", (hour.parse::<u32>().unwrap_or(0) + 11) % 12 + 1),
            'p' => if hour < "12" { "AM" } else { "PM" }.to_owned(),
            'M' => minute.to_owned(),
            'S' => second.to_owned(),
            'F' => stamp[..10].to_owned(),
            'T' => stamp[11..19].to_owned(),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            other => return Err(format!("strftime_now: the directive %{other} is not known")),
        };
        out.push_str(match text.trim_start_matches('0') {
            "" if unpadded => "0",
            short if unpadded => short,
            _ => &text,
        });
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn directives_say_what_c_says() {
        let written =
            strftime(1_175_425_445, "%A %d %B %Y, %a %-d %b %y, %H:%M:%S, %I %p, %F %T %%");
        assert_eq!(
            written.unwrap(),
            "Sunday 01 April 2007, Sun 1 Apr 07, 11:04:05, 11 AM, 2007-04-01 11:04:05 %"
        );
        assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
    }
}
