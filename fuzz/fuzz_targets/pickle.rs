//! Pickled state dicts: descriptions of tensors or an error, nothing larger than the pickle.

#![no_main]

use altiplano_trainer::interop::meta::read_state_dict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(tensors) = read_state_dict(data) else { return };
    let mut bytes = 0;
    for (name, tensor) in &tensors {
        assert!(tensor.shape.len() <= 8 && tensor.stride.len() <= 8, "{tensor:?}");
        bytes += name.len();
    }
    // Each tensor has a name of its own in the pickle.
    assert!(bytes <= data.len());
});
