use super::cuda::source;
use crate::backend::cube::nvidia::assert_compiles;
use crate::backend::cube::nvidia::emulated::{self, Numbers};

#[test]
fn the_kernel_compiles() {
    assert_compiles(&[source()], &[(8, 0), (9, 0)]);
}

/// The kernel on an emulated block against a search: one id, chains longer than a tile, ids that come
/// once.
#[test]
fn the_emulated_kernel_chains_equal_ids() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = emulated::compile("embedding/emulated.cpp", &source().defines, dir.path())
    else {
        return;
    };
    for (count, vocabulary) in [(1, 3), (2500, 40), (1100, 5000)] {
        let half = vocabulary as f32 / 2.0;
        let ids: Vec<i32> =
            Numbers::new(1).f32s(count, half).into_iter().map(|id| (id + half) as i32).collect();
        let mut input: Vec<u8> = bytemuck::cast_slice(&[count as i32]).to_vec();
        input.extend_from_slice(bytemuck::cast_slice(&ids));
        let mut output = emulated::run(&program, input);

        let next: Vec<i32> = output.take(count);
        let follows: Vec<i32> = output.take(count);
        let mut expected = vec![0; count];
        for n in 0..count {
            let m = (n + 1..count).find(|&m| ids[m] == ids[n]).unwrap_or(count);
            assert_eq!(next[n], m as i32, "next of {n} of {count}");
            if m < count {
                expected[m] = 1;
            }
        }
        assert_eq!(follows, expected);
    }
}
