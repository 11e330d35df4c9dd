//! Tries and times every collective: whether an installation works, and how fast.

use std::time::{Duration, Instant};

use crate::element::{Element, Summand, ordered_sum};
use crate::error::{CommError, Result};
use crate::group::Rows;
use crate::pieces::{IN_FLIGHT, staged_piece};
use crate::world::World;

/// One collective at one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Name of the operation.
    pub operation: &'static str,
    /// Bytes of the whole buffer.
    pub bytes: usize,
    /// Time of one operation: that of the slowest rank, a mean over repetitions.
    pub time: Duration,
    /// Bytes that every rank sends in one operation, per second.
    pub bytes_per_second: f64,
}

/// Most pieces of a buffer of so many bytes that a rank has under way at once, to all others of a
/// group together.
pub fn pieces_under_way(bytes: usize, ranks: usize) -> usize {
    let others = ranks.saturating_sub(1);
    let part = bytes / ranks.max(1);
    others * part.div_ceil(staged_piece(ranks)).min(IN_FLIGHT)
}

/// Values that look random, and that every rank can tell of every other: no two ranks, and no two
/// places of one, have the same.
fn value(rank: usize, index: usize) -> f32 {
    let mut x = (rank as u64 + 1) << 40 | index as u64;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 24 bits, from -1 to 1, with exponents that differ, so that another order of a sum shows.
    let fraction = ((x ^ x >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    fraction * [1.0, 64.0, 1e-3, 4096.0][index % 4]
}

fn values(rank: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    range.map(|index| value(rank, index)).collect()
}

/// Elements of a check at whose ends results are compared; a long buffer is not summed whole again.
const COMPARED: usize = 1 << 16;

fn compare<T: PartialEq + std::fmt::Debug>(
    operation: &'static str,
    bytes: usize,
    found: &[T],
    expected: &[T],
) -> Result<()> {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None if found.len() == expected.len() => Ok(()),
        place => {
            let place = place.unwrap_or(0);
            let (found, expected) = (found.get(place), expected.get(place));
            let reason =
                format!("element {place} is {found:?}, the same sum in one process {expected:?}");
            Err(CommError::Check { operation, bytes, reason })
        }
    }
}

/// The sum over all ranks of the elements in `range`, in the order of the ranks.
fn sum_of(ranks: usize, range: &std::ops::Range<usize>) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| values(rank, range.clone())).collect();
    let parts: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
    let mut sum = vec![0.0f32; range.len()];
    ordered_sum(&mut sum, &parts, false);
    sum
}

fn bits<E: Summand + Element>(values: &[E]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Runs every collective over all ranks with buffers of about these sizes in bytes, compares what
/// comes out, bit for bit, with the same sums made in this process, and times it.
///
/// # Errors
/// A result differs, or a rank fails.
pub fn collectives(world: &World, sizes: &[usize]) -> Result<Vec<Measurement>> {
    let mut measured = Vec::new();
    for size in sizes {
        let count = (size / size_of::<f32>()).max(1);
        measured.extend(one_size(world, count)?);
    }
    measured.push(barrier(world)?);
    Ok(measured)
}

fn one_size(world: &World, count: usize) -> Result<[Measurement; 4]> {
    let group = world.everybody();
    let (me, ranks) = (world.rank(), world.ranks());
    let rows = Rows::single(count);
    let bytes = count * size_of::<f32>();
    let own = rows.part(me, ranks);
    let repetitions = ((64 << 20) / bytes).clamp(3, 100);
    let input = values(me, 0..count);
    let compared = own.start..own.end.min(own.start + COMPARED);

    let (mut whole, gathering) = timed(world, repetitions, input.clone(), |whole| {
        group.start_all_gather::<f32, _>(whole, rows)?.wait()
    })?;
    for rank in 0..ranks {
        let part = rows.part(rank, ranks);
        let part = part.start..part.end.min(part.start + COMPARED);
        let expected = values(rank, part.clone());
        compare("all-gather", bytes, bits(&whole[part]), bits(&expected))?;
    }

    let buffers = (input, vec![0.0f32; own.len()]);
    let ((input, part), scattering) = timed(world, repetitions, buffers, |(input, part)| {
        group.start_reduce_scatter::<f32, _, _>(input, part, rows)?.wait()
    })?;
    let expected = sum_of(ranks, &compared);
    compare("reduce-scatter", bytes, bits(&part[..compared.len()]), bits(&expected))?;

    // Repeated, its sums would grow: every repetition starts from the input.
    whole.copy_from_slice(&input);
    let (_, reducing) = timed(world, repetitions, whole.clone(), |mut values| {
        values.copy_from_slice(&input);
        group.start_all_reduce::<f32, _>(values)?.wait()
    })?;
    let sum = group.start_all_reduce::<f32, _>(whole)?.wait()?;
    let part = own.start..own.start + compared.len();
    compare("all-reduce", bytes, bits(&sum[part]), bits(&expected))?;

    let last = ranks - 1;
    let (sent, sending) = timed(world, repetitions, sum, |mut values| {
        if me == last {
            values.copy_from_slice(&input);
        }
        group.start_broadcast::<f32, _>(values, last)?.wait()
    })?;
    let start = 0..count.min(COMPARED);
    compare("broadcast", bytes, bits(&sent[start.clone()]), bits(&values(last, start)))?;

    let share = bytes as f64 * (ranks - 1) as f64 / ranks as f64;
    let row = |operation, time: Duration, sent: f64| Measurement {
        operation,
        bytes,
        time,
        bytes_per_second: sent / time.as_secs_f64().max(1e-9),
    };
    Ok([
        row("all-gather", gathering, share),
        row("reduce-scatter", scattering, share),
        row("all-reduce", reducing, 2.0 * share),
        // Only one rank sends, to each of the others.
        row("broadcast", sending, bytes as f64 * (ranks - 1) as f64),
    ])
}

fn barrier(world: &World) -> Result<Measurement> {
    let ((), time) = timed(world, 100, (), |()| world.everybody().barrier())?;
    Ok(Measurement { operation: "barrier", bytes: 0, time, bytes_per_second: 0.0 })
}

/// Repeats an operation on its own buffers; the mean time, on the slowest rank.
fn timed<T>(
    world: &World,
    repetitions: usize,
    buffers: T,
    mut operation: impl FnMut(T) -> Result<T>,
) -> Result<(T, Duration)> {
    let mut buffers = operation(buffers)?;
    world.everybody().barrier()?;
    let start = Instant::now();
    for _ in 0..repetitions {
        buffers = operation(buffers)?;
    }
    let own = start.elapsed().as_secs_f64() / repetitions as f64;
    let slowest = world.everybody().gather_records(&own)?.into_iter().fold(own, f64::max);
    Ok((buffers, Duration::from_secs_f64(slowest)))
}
