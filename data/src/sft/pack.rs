//! Several examples in one row.

/// Rows that may still take an example. The oldest is closed when another has to be opened.
pub const OPEN_ROWS: usize = 64;

/// Lays examples of these lengths, in this order, into rows of `row_length`: each into the first open row
/// with room for it, or into a new one. Gives the examples of each row in the order of the rows.
///
/// An example longer than a row has one for itself.
pub fn pack(lengths: &[usize], row_length: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room: Vec<usize> = Vec::new();
    for (example, &length) in lengths.iter().enumerate() {
        let first_open = rows.len().saturating_sub(OPEN_ROWS);
        let fits = room[first_open..].iter().position(|&room| room >= length);
        match fits {
            Some(open) => {
                rows[first_open + open].push(example);
                room[first_open + open] -= length;
            }
            None => {
                rows.push(vec![example]);
                room.push(row_length.saturating_sub(length));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_go_into_the_first_row_with_room() {
        assert_eq!(pack(&[6, 5, 4, 3, 2, 10], 10), [vec![0, 2], vec![1, 3, 4], vec![5]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[11, 1], 10), [vec![0], vec![1]]);
    }

    /// Every example is in one row, and a row that was left behind takes nothing more.
    #[test]
    fn the_window_of_open_rows_moves_on() {
        let mut lengths = vec![7; OPEN_ROWS + 1];
        lengths.push(3);
        let rows = pack(&lengths, 10);
        assert_eq!(rows.len(), OPEN_ROWS + 1);
        assert_eq!((rows[0].len(), rows[1].len()), (1, 2));
        let all: std::collections::BTreeSet<usize> = rows.iter().flatten().copied().collect();
        assert_eq!(all.len(), lengths.len());
    }
}
