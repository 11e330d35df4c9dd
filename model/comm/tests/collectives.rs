//! Every collective against what one process gets, over ranks that are threads.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::time::Duration;

use altiplano_comm::element::ordered_sum;
use altiplano_comm::{CommError, Element, Options, RankGrid, Rows, Summand, World, check};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn options() -> Options {
    Options { timeout: Duration::from_secs(60), ..Options::default() }
}

/// Runs ranks and gives what each returned; none may fail.
fn run<T: Send>(ranks: usize, rank: impl Fn(&World) -> Result<T, CommError> + Sync) -> Vec<T> {
    let rank = |world: World| {
        let result = rank(&world)?;
        world.finish()?;
        Ok(result)
    };
    let results = World::run_threads(ranks, &options(), rank).unwrap();
    results.into_iter().collect::<Result<_, CommError>>().unwrap()
}

fn random<E>(seed: u64, length: usize, convert: impl Fn(f64) -> E) -> Vec<E> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || (random.random::<f64>() - 0.5) * 10f64.powi(random.random_range(-4..5));
    (0..length).map(|_| convert(value())).collect()
}

fn sums_have_the_order_of_the_ranks<E: Summand>(convert: impl Fn(f64) -> E + Sync + Copy) {
    for ranks in 1..=9 {
        let mut lengths = vec![0, 1, 7, 1000, 16383, 16384];
        if ranks <= 4 {
            lengths.push(1_000_000);
        }
        for length in lengths {
            let input = |rank: usize| random((length + 31 * rank) as u64, length, convert);
            let inputs: Vec<Vec<E>> = (0..ranks).map(input).collect();
            let slices: Vec<&[E]> = inputs.iter().map(Vec::as_slice).collect();
            let mut sum = vec![E::zeroed(); length];
            ordered_sum(&mut sum, &slices, false);
            let start = random(99, length, convert);
            let mut added = start.clone();
            ordered_sum(&mut added, &slices, true);
            let rows = Rows::single(length);
            let found = run(ranks, |world| {
                let (group, own) = (world.everybody(), rows.part(world.rank(), ranks));
                let input = inputs[world.rank()].clone();
                let part = vec![E::zeroed(); own.len()];
                let scattering =
                    group.start_reduce_scatter::<E, _, _>(input.clone(), part, rows)?;
                // A second one under way meanwhile, and the third.
                let part = start[own].to_vec();
                let adding =
                    group.start_reduce_scatter_add::<E, _, _>(input.clone(), part, rows)?;
                let reducing = group.start_all_reduce::<E, _>(input.clone())?;
                let (back, scattered) = scattering.wait()?;
                assert!(bytes(&back) == bytes(&input));
                Ok((scattered, adding.wait()?.1, reducing.wait()?))
            });
            let scattered: Vec<E> = found.iter().flat_map(|found| found.0.clone()).collect();
            let accumulated: Vec<E> = found.iter().flat_map(|found| found.1.clone()).collect();
            let name = format!("{} x {length} on {ranks}", E::NAME);
            assert!(bytes(&scattered) == bytes(&sum), "reduce-scatter of {name}");
            assert!(bytes(&accumulated) == bytes(&added), "reduce-scatter-add of {name}");
            assert!(
                found.iter().all(|found| bytes(&found.2) == bytes(&sum)),
                "all-reduce of {name}"
            );
        }
    }
}

fn bytes<E: Element>(values: &[E]) -> &[u8] {
    bytemuck::cast_slice(values)
}

#[test]
fn sums_of_f32_have_the_order_of_the_ranks() {
    sums_have_the_order_of_the_ranks(|x| x as f32);
}

#[test]
fn sums_of_f64_have_the_order_of_the_ranks() {
    sums_have_the_order_of_the_ranks(|x| x);
}

#[test]
fn sums_of_bf16_have_the_order_of_the_ranks() {
    sums_have_the_order_of_the_ranks(bf16::from_f64);
}

#[test]
fn a_buffer_of_many_pieces_is_summed_whole() {
    // 3 parts of 17 MB: five pieces each, the last one short.
    let (ranks, length) = (3, 12_750_001);
    let rows = Rows::single(length);
    let value =
        |rank: usize, i: usize| ((i * 2_654_435_761 + rank * 977) % 1_000_003) as f32 * 1e-3;
    let parts = run(ranks, |world| {
        let own = rows.part(world.rank(), ranks);
        let input: Vec<f32> = (0..length).map(|i| value(world.rank(), i)).collect();
        let part = vec![0.0; own.len()];
        let (_, part) =
            world.everybody().start_reduce_scatter::<f32, _, _>(input, part, rows)?.wait()?;
        let right = own.zip(&part).all(|(i, sum)| value(0, i) + value(1, i) + value(2, i) == *sum);
        Ok(right)
    });
    assert_eq!(parts, [true; 3]);
}

#[test]
fn gathers_give_everybody_everything() {
    for ranks in 1..=9 {
        // 41 rows of 3: uneven; 2 rows: some ranks have none.
        for rows in
            [Rows { count: 41, width: 3 }, Rows { count: 2, width: 5 }, Rows::single(70_000)]
        {
            let expected: Vec<u32> = (0..(rows.count * rows.width) as u32).collect();
            let found = run(ranks, |world| {
                let mut whole = vec![u32::MAX; expected.len()];
                let own = rows.part(world.rank(), ranks);
                whole[own.clone()].copy_from_slice(&expected[own]);
                let whole = world.everybody().start_all_gather::<u32, _>(whole, rows)?.wait()?;
                let text = "x".repeat(world.rank() * 3);
                let texts = world.everybody().gather_bytes(text.as_bytes())?;
                let records = world.everybody().gather_records(&[world.rank() as f64, 0.5])?;
                let root = ranks - 1;
                let sent = vec![world.rank() as i64; 5];
                let sent = world.everybody().start_broadcast::<i64, _>(sent, root)?.wait()?;
                assert_eq!(sent, [root as i64; 5]);
                world.everybody().barrier()?;
                Ok((whole, texts, records))
            });
            for (whole, texts, records) in found {
                assert_eq!(whole, expected);
                let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
                assert_eq!(lengths, (0..ranks).map(|rank| 3 * rank).collect::<Vec<_>>());
                assert!(records.iter().enumerate().all(|(i, record)| record[0] == i as f64));
                assert_eq!(records.len(), ranks);
            }
        }
    }
}

#[test]
fn groups_do_not_hear_each_other() {
    let grid = RankGrid::new(2, Some(3), 6).unwrap();
    let found = run(6, |world| {
        let tensor = world.split("tensor", grid.tensor_group(world.rank()))?;
        let data = world.split("data", grid.data_group(world.rank()))?;
        let value = 10f64.powi(world.rank() as i32);
        // Both under way at once, and waited for in the other order.
        let over_data = data.start_all_reduce::<f64, _>(vec![value; 3000])?;
        let over_tensor = tensor.start_all_reduce::<f64, _>(vec![value])?;
        let over_tensor = over_tensor.wait()?;
        Ok((over_tensor[0], over_data.wait()?[0]))
    });
    let columns = [10101.0, 101_010.0];
    let rows = [11.0, 1100.0, 110_000.0];
    for (rank, (tensor, data)) in found.into_iter().enumerate() {
        assert_eq!((tensor, data), (rows[rank / 2], columns[rank % 2]), "rank {rank}");
    }
}

#[test]
fn messages_arrive_in_the_order_of_their_start() {
    let found = run(3, |world| {
        let group = world.everybody();
        if world.rank() == 2 {
            let first = group.start_receive::<f32, _>(vec![0.0; 3_000_000], 0)?;
            let second = group.start_receive::<f32, _>(vec![0.0; 1], 0)?;
            let third = group.start_receive::<f32, _>(vec![0.0; 2], 1)?;
            return Ok([third.wait()?[0], first.wait()?[2_999_999], second.wait()?[0]]);
        }
        let value = world.rank() as f32 + 1.0;
        let long = if world.rank() == 0 { 3_000_000 } else { 2 };
        let first = group.start_send::<f32, _>(vec![value; long], 2)?;
        if world.rank() == 0 {
            group.start_send::<f32, _>(vec![value + 10.0], 2)?.wait()?;
        }
        first.wait()?;
        Ok([0.0; 3])
    });
    assert_eq!(found[2], [2.0, 1.0, 11.0]);
}

#[test]
fn one_rank_is_given_its_own_buffer_back() {
    let world = World::single();
    let values = vec![1.0f32, 2.0];
    let place = values.as_ptr();
    let values = world.everybody().start_all_reduce::<f32, _>(values).unwrap().wait().unwrap();
    let rows = Rows::single(2);
    let values =
        world.everybody().start_all_gather::<f32, _>(values, rows).unwrap().wait().unwrap();
    assert_eq!((values.as_ptr(), &values[..]), (place, &[1.0f32, 2.0][..]));
    let group = world.split("data", vec![0]).unwrap();
    let part = vec![10.0f32; 2];
    let added = group.start_reduce_scatter_add::<f32, _, _>(values, part, rows).unwrap();
    assert_eq!(added.wait().unwrap().1, [11.0, 12.0]);
    assert_eq!((group.traffic().bytes, world.waited()), (0, Duration::ZERO));
    world.finish().unwrap();
}

#[test]
fn bytes_sent_are_those_of_the_formula() {
    let call = 40;
    let length = 30_000u64;
    let traffic = run(3, |world| {
        let data = world.split("data", vec![0, 1, 2])?;
        data.start_all_reduce::<f32, _>(vec![1.0; length as usize])?.wait()?;
        Ok(data.traffic())
    });
    for traffic in traffic {
        assert_eq!(traffic.operations, 1);
        // (m - 1)/m of the buffer for the sum, the same again for the gather, and two calls.
        assert_eq!(traffic.bytes, 2 * length * 4 * 2 / 3 + 2 * call);
    }
}

/// Errors of all ranks of a run in which ranks do different things; none hangs.
fn failures(
    ranks: usize,
    rank: impl Fn(&World) -> Result<(), CommError> + Sync,
) -> Vec<Option<CommError>> {
    World::run_threads(ranks, &options(), |world| rank(&world).err()).unwrap()
}

#[test]
fn different_calls_are_named_on_both_ranks() {
    let found = failures(2, |world| {
        let group = world.everybody();
        match world.rank() {
            0 => group.start_all_reduce::<f32, _>(vec![0.0; 12])?.wait().map(drop),
            _ => group.barrier(),
        }
    });
    for (rank, error) in found.into_iter().enumerate() {
        // One of them may find the other gone already; whoever compares names both.
        match error.unwrap() {
            CommError::Mismatch(found) => {
                let calls = ["all-reduce of 12 f32", "barrier"];
                assert_eq!(
                    [found.call.as_str(), found.other_call.as_str()],
                    [calls[rank], calls[1 - rank]]
                );
                assert_eq!(found.other.rank, 1 - rank);
            }
            error => panic!("{error}"),
        }
    }
}

#[test]
fn different_shapes_types_and_roots_are_different_calls() {
    for case in 0..4 {
        let found = failures(3, |world| {
            let (group, odd) = (world.everybody(), world.rank() == 2);
            let length = if odd { 7 } else { 8 };
            match case {
                0 => group.start_all_reduce::<f32, _>(vec![0.0; length])?.wait().map(drop),
                1 if odd => group.start_all_reduce::<f64, _>(vec![0.0; 8])?.wait().map(drop),
                1 => group.start_all_reduce::<f32, _>(vec![0.0; 8])?.wait().map(drop),
                2 => group.start_broadcast::<u8, _>(vec![0; 8], usize::from(odd))?.wait().map(drop),
                // The same number of elements in rows of another width.
                _ => {
                    let width = if odd { 4 } else { 2 };
                    let rows = Rows { count: 24 / width, width };
                    group.start_all_gather::<u8, _>(vec![0; 24], rows)?.wait().map(drop)
                }
            }
        });
        let named = found.iter().flatten().filter(|error| matches!(error, CommError::Mismatch(_)));
        assert!(named.count() >= 1, "case {case}: {found:?}");
        assert!(found.iter().all(Option::is_some), "case {case}: {found:?}");
    }
}

#[test]
fn a_rank_that_ends_is_named_with_the_operation() {
    let found = failures(3, |world| {
        world.set_during("step 120");
        let data = world.split("data", vec![0, 1, 2])?;
        if world.rank() == 1 {
            return Ok(());
        }
        let group = data.of("layers 12-13");
        let rows = Rows::single(3);
        let whole = group.start_all_gather::<u8, _>(vec![0; 3], rows)?.wait();
        // Whatever comes after fails with the same error.
        assert_eq!(group.barrier().unwrap_err(), whole.clone().unwrap_err());
        whole.map(drop)
    });
    let [first, gone, last] = <[_; 3]>::try_from(found).unwrap();
    assert_eq!(gone, None);
    for error in [first, last] {
        let message = error.unwrap().to_string();
        // The other of the two may have ended by then, for the same reason.
        assert!(
            message.contains("step 120: all-gather of layers 12-13 over the data group: rank "),
            "{message}"
        );
        assert!(message.contains("(host ") && message.contains("has ended"), "{message}");
    }
}

#[test]
fn a_rank_that_panics_ends_the_others() {
    let errors = Mutex::new(Vec::new());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        World::run_threads(2, &options(), |world| {
            if world.rank() == 1 {
                std::panic::resume_unwind(Box::new("out of step"));
            }
            errors.lock().unwrap().push(world.everybody().barrier().unwrap_err());
        })
    }));
    assert!(outcome.is_err());
    let errors = errors.into_inner().unwrap();
    assert!(matches!(&errors[..], [CommError::Gone { peer, .. }] if peer.rank == 1), "{errors:?}");
}

#[test]
fn a_rank_that_does_not_answer_is_named_at_the_timeout() {
    let options = Options { timeout: Duration::from_millis(300), ..options() };
    // Rank 2 never calls; it stays until both others have given up.
    let given_up = std::sync::Barrier::new(3);
    let found = World::run_threads(3, &options, |world| {
        let error = match world.rank() {
            2 => None,
            _ => {
                // Computing is no waiting: this alone must not end the run.
                let pending = world.everybody().start_all_reduce::<f32, _>(vec![0.0; 9]).unwrap();
                std::thread::sleep(Duration::from_millis(400));
                assert!(!pending.is_done());
                pending.wait().err()
            }
        };
        given_up.wait();
        error
    });
    for error in &found.unwrap()[..2] {
        match error {
            Some(CommError::Timeout { missing, during, .. }) => {
                assert!(missing.iter().any(|peer| peer.rank == 2), "{missing:?}");
                assert!(during.contains("all-reduce over the world group"), "{during}");
            }
            error => panic!("{error:?}"),
        }
    }
}

#[test]
fn buffers_of_a_wrong_length_are_refused_before_anything_is_sent() {
    let world = World::single();
    let (group, rows) = (world.everybody(), Rows { count: 3, width: 4 });
    let error = group.start_all_gather::<f32, _>(vec![0.0; 11], rows).unwrap_err().to_string();
    assert_eq!(error, "all-gather over the world group: the buffer has 11 elements, expected 12");
    let error = group.start_broadcast::<u8, _>(vec![0], 1).unwrap_err().to_string();
    assert!(error.contains("found member 1, expected less than 1"), "{error}");
    let error = world.split("data", vec![1]).unwrap_err().to_string();
    assert!(error.contains("rank 0 is not among its members [1]"), "{error}");
    assert!(group.start_send::<u8, _>(vec![0], 0).unwrap_err().to_string().contains("itself"));
}

#[test]
fn a_dropped_operation_is_waited_for() {
    let found = run(2, |world| {
        let group = world.everybody();
        drop(group.start_all_reduce::<f32, _>(vec![1.0; 100_000])?);
        group.start_all_reduce::<f32, _>(vec![1.0])?.wait()
    });
    assert_eq!(found, [[2.0], [2.0]]);
}

#[test]
fn a_slow_link_changes_no_bit_and_is_waited_for() {
    let options = Options { link_bytes_per_second: Some(20e6), ..options() };
    let sums = World::run_threads(2, &options, |world| {
        let sum = world.everybody().start_all_reduce::<f32, _>(vec![0.5; 50_000]).unwrap().wait();
        (sum.unwrap()[49_999], world.waited())
    });
    for (sum, waited) in sums.unwrap() {
        assert_eq!(sum, 1.0);
        // 200 kB at 20 MB/s cannot take less.
        assert!(waited >= Duration::from_millis(9), "{waited:?}");
    }
}

#[test]
fn many_ranks_come_together() {
    let found = run(64, |world| {
        let grid = RankGrid::new(2, Some(32), 64)?;
        let data = world.split("data", grid.data_group(world.rank()))?;
        let sum = data.start_all_reduce::<f64, _>(vec![world.rank() as f64; 2000])?.wait()?;
        Ok(sum[1999])
    });
    for (rank, sum) in found.into_iter().enumerate() {
        // 0 + 2 + … + 62, or each one more.
        assert_eq!(sum, 992.0 + 32.0 * (rank % 2) as f64);
    }
}

#[test]
fn the_check_of_an_installation_passes() {
    for measured in run(3, |world| check::collectives(world, &[8, 4096, 1 << 20])) {
        assert_eq!(measured.len(), 3 * 4 + 1);
        assert!(measured.iter().all(|row| row.time > Duration::ZERO));
    }
}
