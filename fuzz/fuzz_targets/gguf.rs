//! Headers of GGUF files: every tensor lies inside the file and apart from the others.

#![no_main]

use altiplano_trainer::interop::gguf::{Value, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(contents) = parse(data) else { return };
    let mut places: Vec<_> = contents.tensors.values().collect();
    places.sort_by_key(|place| place.bytes.start);
    let mut end = 0;
    for place in places {
        assert!(place.bytes.start >= end && place.bytes.end <= data.len(), "{place:?}");
        end = place.bytes.end;
        let elements: usize = place.dimensions.iter().product();
        let blocks = elements / place.stored.block_len();
        assert_eq!(place.bytes.len(), blocks * place.stored.block_bytes(), "{place:?}");
    }
    for value in contents.metadata.values() {
        if let Value::Array { bytes, .. } = value {
            assert!(bytes.end <= data.len(), "{value:?}");
        }
    }
    // A header takes at least 13 bytes a key.
    assert!(13 * contents.metadata.len() <= data.len());
});
