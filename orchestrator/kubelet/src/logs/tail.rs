//! Where the last lines of a log file begin.

use super::parse::ends_line;
use std::io::{self, Read, Seek, SeekFrom};

/// Bytes that are read at once, backwards.
const BLOCK: u64 = 64 * 1024;

/// The offset from which on `file` holds the container's last `lines` lines. A line of several records counts once; one that
/// is not finished yet counts too.
///
/// # Errors
/// As the system says.
pub fn start_of_last<F: Read + Seek>(file: &mut F, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let (mut found, mut first) = (0u64, true);
    // Of records, the one that is being looked at: its bytes from the block that was read, and where it begins.
    let (mut tail, mut position) = (Vec::new(), end);
    loop {
        let from = position.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(position - from).unwrap_or_default()];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut block)?;
        block.append(&mut tail);
        // Every record in `block` but the first has its beginning in it.
        while let Some(newline) = block.iter().rposition(|it| *it == b'\n') {
            let record = &block[newline + 1..];
            let begin = from + newline as u64 + 1;
            if first && record.is_empty() {
                // The newline that ends the file.
                first = false;
                block.truncate(newline);
                continue;
            }
            // Read backwards, a record that ends a line begins a new one, and so does an unfinished one at the very end.
            if ends_line(record) || found == 0 {
                found += 1;
                if found > lines {
                    return Ok(begin + record.len() as u64 + 1);
                }
            }
            first = false;
            block.truncate(newline);
        }
        if from == 0 {
            if !block.is_empty() && (ends_line(&block) || found == 0) {
                found += 1;
            }
            return Ok(if found > lines { block.len() as u64 + 1 } else { 0 });
        }
        position = from;
        tail = block;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn last(file: &str, lines: u64) -> String {
        let mut cursor = Cursor::new(file.as_bytes());
        let start = start_of_last(&mut cursor, lines).unwrap();
        file[usize::try_from(start).unwrap()..]
            .lines()
            .map(|it| it.rsplit(' ').next().unwrap())
            .collect()
    }

    fn file(tags: &str) -> String {
        let record = |(n, tag): (usize, char)| format!("2026-11-20T10:00:00Z stdout {tag} {n}\n");
        tags.chars().enumerate().map(record).collect()
    }

    #[test]
    fn lines_not_records_are_counted() {
        for (tags, lines, expected) in [
            ("", 3, ""),
            ("FFF", 0, ""),
            ("FFF", 1, "2"),
            ("FFF", 2, "12"),
            ("FFF", 3, "012"),
            ("FFF", 9, "012"),
            ("FPPF", 1, "123"),
            ("FPPF", 2, "0123"),
            ("FPFPP", 1, "34"),
            ("FPFPP", 2, "1234"),
            ("PP", 1, "01"),
        ] {
            assert_eq!(last(&file(tags), lines), expected, "{tags} {lines}");
        }
    }

    #[test]
    fn blocks_end_anywhere() {
        let long = "x".repeat(1000);
        let whole: String = (0..500)
            .map(|n| format!("2026-11-20T10:00:00Z stdout F {long} {n}\n"))
            .collect();
        for lines in [1, 2, 64, 65, 66, 130, 499, 500] {
            let expected: String = (500 - lines..500).map(|it| it.to_string()).collect();
            assert_eq!(last(&whole, lines), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes(file in proptest::collection::vec(any::<u8>(), 0..400), lines in 0u64..10) {
            let start = start_of_last(&mut Cursor::new(&file), lines).unwrap();
            prop_assert!(start <= file.len() as u64);
            prop_assert!(start == 0 || start == file.len() as u64 || file[start as usize - 1] == b'\n');
        }
    }
}
