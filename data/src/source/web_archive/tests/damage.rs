//! Archives that are cut short, damaged, or made to be slow.

use proptest::prelude::*;

use super::*;

/// Reads a file of five members with damage done to the third.
fn with_damage(damage: impl FnOnce(&mut Vec<u8>)) -> (Vec<Record>, u64, Vec<u8>) {
    let mut members: Vec<Vec<u8>> = (0..5).map(|n| gzip(&wet(n, &page(n)))).collect();
    let offset = (members[0].len() + members[1].len()) as u64;
    damage(&mut members[2]);
    let file = members.concat();
    (read(&file), offset, file)
}

#[test]
fn reading_goes_on_behind_damage() {
    for cut in [12, 30, 200, 500] {
        let (records, offset, _) = with_damage(|member| member.truncate(member.len() - cut));
        assert_eq!(titles(&records), ["Title 0", "Title 1", "Title 3", "Title 4"], "{cut}");
        assert_eq!(reasons(&records), ["damaged_member"], "{cut}");
        let Record::Rejected(rejection) = &records[2] else { panic!("{records:?}") };
        assert!(rejection.reason.is_error());
        assert_eq!(rejection.offset, offset);
        assert!(rejection.detail.contains(&format!("compressed byte {offset}")));
    }
    // Only the checksum is wrong; a bit of the data is; the header is; bytes are missing.
    for at in [-8isize, -100, 0, 3, 40] {
        let (records, ..) = with_damage(|member| {
            let at = if at < 0 { member.len() - at.unsigned_abs() } else { at.unsigned_abs() };
            member[at] ^= 0xe4;
        });
        assert_eq!(titles(&records), ["Title 0", "Title 1", "Title 3", "Title 4"], "{at}");
        assert_eq!(reasons(&records), ["damaged_member"], "{at}");
    }
    let (records, ..) = with_damage(|member| drop(member.drain(100..150)));
    assert_eq!(reasons(&records), ["damaged_member"]);
    // Garbage between members is no record of its own.
    let (records, ..) =
        with_damage(|member| member.extend_from_slice(b"garbage \x1f\x8b\x08\0\x08"));
    assert_eq!(titles(&records).len(), 5);
    assert_eq!(reasons(&records), ["damaged_member"]);
}

#[test]
fn every_truncation_is_counted() {
    let members: Vec<Vec<u8>> = (0..3).map(|n| gzip(&wet(n, &page(n)))).collect();
    let file = members.concat();
    let ends = [members[0].len(), members[0].len() + members[1].len()];
    for length in (1..file.len()).step_by(41).chain([file.len() - 1]) {
        let records = read(&file[..length]);
        let whole = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(titles(&records).len(), whole, "{length}");
        let expected = if ends.contains(&length) { vec![] } else { vec!["damaged_member"] };
        assert_eq!(reasons(&records), expected, "{length}");
    }
    let plain: Vec<u8> = (0..3).flat_map(|n| wet(n, &page(n))).collect();
    let records = read(&plain[..plain.len() - 100]);
    assert_eq!((titles(&records).len(), reasons(&records)), (2, vec!["truncated"]));
    let frames: Vec<u8> =
        (0..3).flat_map(|n| zstd::encode_all(&wet(n, &page(n))[..], 3).unwrap()).collect();
    let records = read(&frames[..frames.len() - 100]);
    assert_eq!((titles(&records).len(), reasons(&records)), (2, vec!["damaged_member"]));
    assert!(read_with(&WebArchiveSource::files(vec![]), b"").is_err());
}

#[test]
fn a_record_ends_where_the_next_begins_whatever_its_length_says() {
    let right = wet(1, &page(1));
    let length = page(1).len();
    let with_length = |claim: usize| {
        let text = String::from_utf8(right.clone()).unwrap();
        text.replace(&format!("Content-Length: {length}"), &format!("Content-Length: {claim}"))
            .into_bytes()
    };
    for claim in [0, 10, length - 3, length + 3, length + 10, length + 30, length * 2, length * 100]
    {
        for compress in [true, false] {
            let parts = [wet(0, &page(0)), with_length(claim), wet(2, &page(2)), wet(3, &page(3))];
            let file: Vec<u8> = match compress {
                true => parts.iter().flat_map(|part| gzip(part)).collect(),
                false => parts.concat(),
            };
            let records = read(&file);
            assert_eq!(
                titles(&records),
                ["Title 0", "Title 1", "Title 2", "Title 3"],
                "{claim} {compress}"
            );
            assert_eq!(reasons(&records), [""; 0], "{claim} {compress}");
            let whole = read(&[wet(0, &page(0)), right.clone()].concat());
            let (found, whole) = (documents(&records), documents(&whole));
            assert_eq!(found[1].text, whole[1].text, "{claim} {compress}");
            let marked = |n: usize| found[n].has_metadata("bad_content_length");
            assert_eq!([0, 1, 2, 3].map(marked), [false, true, false, false]);
        }
    }
    // A claim beyond all bounds hides what it covers where nothing is compressed.
    let huge = with_length(usize::MAX);
    let records = read(&[gzip(&wet(0, &page(0))), gzip(&huge), gzip(&wet(2, &page(2)))].concat());
    assert_eq!(titles(&records), ["Title 0", "Title 1", "Title 2"]);
    // The last record of a compressed file.
    let records = read(&[gzip(&wet(0, &page(0))), gzip(&with_length(length + 50))].concat());
    assert_eq!(titles(&records), ["Title 0", "Title 1"]);
    let none = String::from_utf8(right).unwrap().replace("Content-Length", "Content-Size");
    let records = read(&[none.into_bytes(), wet(2, &page(2))].concat());
    assert_eq!((titles(&records), reasons(&records)), (vec!["Title 2".into()], vec!["bad_record"]));
}

#[test]
fn ids_do_not_move_when_something_before_them_is_damaged() {
    let members: Vec<Vec<u8>> = (0..4).map(|n| gzip(&wet(n, &page(n)))).collect();
    let file = members.concat();
    let ids = |file: &[u8]| -> Vec<String> {
        documents(&read(file)).iter().map(|document| document.id.clone()).collect()
    };
    let whole = ids(&file);
    assert_eq!(whole[1], format!("CC-MAIN-1.warc.wet.gz/{:012}", members[0].len()));
    let mut damaged = file.clone();
    damaged[members[0].len() + 40] ^= 0xff;
    let found = ids(&damaged);
    assert_eq!(found, [&whole[0], &whole[2], &whole[3]].map(String::clone));
    // Several records in a member, and none compressed.
    let plain: Vec<u8> = (0..4).flat_map(|n| wet(n, &page(n))).collect();
    let second = wet(0, &page(0)).len();
    assert_eq!(ids(&plain)[1], format!("CC-MAIN-1.warc.wet.gz/{second:012}"));
    let one = ids(&gzip(&plain));
    assert_eq!(one[0], "CC-MAIN-1.warc.wet.gz/000000000000");
    assert_eq!(one[1], format!("CC-MAIN-1.warc.wet.gz/000000000000+{second}"));
}

#[test]
fn a_file_made_to_be_searched_is_read_in_bounded_time() {
    // Members inside members, each of which begins well and ends badly.
    let mut file = gzip(&wet(0, &page(0)));
    for _ in 0..3000 {
        file.extend_from_slice(&gzip(b"WARC/1.0\r\nContent-Length: 99999999\r\n\r\n")[..30]);
    }
    file.extend_from_slice(&[0x1f, 0x8b, 8, 0].repeat(50_000));
    file.extend_from_slice(&[0x1f, 0x8b, 8, 8].repeat(20_000));
    file.extend(gzip(&wet(1, &page(1))));
    let records = read(&file);
    assert_eq!(titles(&records), ["Title 0", "Title 1"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_anywhere_leaves_the_other_members(at in 0usize..10_000, bits in 1u8.., count in 0usize..40) {
        let members: Vec<Vec<u8>> = (0..5).map(|n| gzip(&wet(n, &page(n)))).collect();
        let mut file = members.concat();
        let at = at % file.len();
        for byte in file.iter_mut().skip(at).take(count) {
            *byte ^= bits;
        }
        let found = titles(&read(&file));
        let mut start = 0;
        for (number, member) in members.iter().enumerate() {
            let end = start + member.len();
            let touched = count > 0 && at < end && at + count > start;
            if !touched {
                prop_assert!(found.contains(&format!("Title {number}")), "{number} of {found:?}");
            }
            start = end;
        }
    }
}
