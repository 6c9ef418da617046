//! The write-ahead log: two files of fixed size, written in turn, whose records are made durable by one `fdatasync` per batch.
//!
//! redb alone needs 0.7–0.9 ms for a small durable commit where one `fdatasync` of a file that is written already takes
//! 0.13 ms, and its commits grow with the file. So writes are acknowledged from here, and reach redb in the background.
//!
//! A record, all numbers little-endian, begins at a multiple of 8: magic (4 bytes), length of the payload (4), generation of
//! the file's content (8), revision up to which everything was durable when it was written (8), CRC-32 of the fields before
//! and the payload (4), zero (4), payload. A file is used again from its beginning, with a higher generation, once redb
//! holds all of it: the first record of another generation ends the content.

use crate::{Revision, StoreError};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const MAGIC: u32 = 0x4c57_4c46;
const HEAD: usize = 32;
const ALIGN: usize = 8;
const NAMES: [&str; 2] = ["log-0.wal", "log-1.wal"];

/// The log as it is written.
#[derive(Debug)]
pub(super) struct Wal {
    files: [File; 2],
    paths: [PathBuf; 2],
    active: usize,
    /// Revisions of the newest records in both files.
    last: [Revision; 2],
    /// Bytes of each file.
    size: u64,
    generation: u64,
    /// Where the next record goes.
    position: u64,
    /// Everything up to this revision is durable.
    durable: Revision,
    buffer: Vec<u8>,
}

/// What one log file holds.
#[derive(Debug, Default)]
struct Content {
    generation: u64,
    payloads: Vec<Vec<u8>>,
    /// The highest revision that any record, also one behind a gap, says to be durable.
    durable: Revision,
}

/// What a log holds after a crash.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Payloads in the order in which they were written, up to the first torn one.
    pub(super) payloads: Vec<Vec<u8>>,
    /// Everything up to this revision was durable: with less than this recovered, the log is damaged and not merely torn.
    pub(super) durable: Revision,
}

/// Reads what is there, without changing it.
pub(super) fn recover(directory: &Path) -> Result<Recovered, StoreError> {
    let mut contents = Vec::new();
    for name in NAMES {
        let path = directory.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => contents.push(read(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("reading", &path, source)),
        }
    }
    contents.sort_by_key(|it| it.generation);
    let durable = contents.iter().map(|it| it.durable).max().unwrap_or(0);
    Ok(Recovered {
        payloads: contents.into_iter().flat_map(|it| it.payloads).collect(),
        durable,
    })
}

fn read(bytes: &[u8]) -> Content {
    let mut content = Content::default();
    let mut at = 0;
    while let Some(record) = record_at(bytes, at) {
        if at > 0 && record.generation != content.generation {
            break;
        }
        content.generation = record.generation;
        content.durable = content.durable.max(record.durable);
        content.payloads.push(record.payload.to_vec());
        at = record.end;
    }
    // What lies behind the end is older, or part of a batch that was never acknowledged. If it says that more than this was
    // durable, then it is a hole and not the end.
    while at + HEAD <= bytes.len() {
        match record_at(bytes, at) {
            Some(record) => {
                content.durable = content.durable.max(record.durable);
                at = record.end;
            }
            None => at += ALIGN,
        }
    }
    content
}

struct Found<'a> {
    generation: u64,
    durable: Revision,
    payload: &'a [u8],
    end: usize,
}

fn record_at(bytes: &[u8], at: usize) -> Option<Found<'_>> {
    let rest = bytes.get(at..)?;
    let number = |at: usize| {
        rest.get(at..at + 4)
            .map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]))
    };
    let long = |at: usize| Some(u64::from(number(at)?) | u64::from(number(at + 4)?) << 32);
    if number(0)? != MAGIC {
        return None;
    }
    let length = number(4)? as usize;
    let payload = rest.get(HEAD..HEAD.checked_add(length)?)?;
    if number(24)? != checksum(&rest[..24], payload) {
        return None;
    }
    let end = at + (HEAD + length).next_multiple_of(ALIGN);
    Some(Found {
        generation: long(8)?,
        durable: long(16)?,
        payload,
        end,
    })
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

fn frame(out: &mut Vec<u8>, generation: u64, durable: Revision, payload: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    // Bounded by the file's size, which `create` bounds.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(&durable.to_le_bytes());
    let sum = checksum(&out[start..], payload);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out.resize(start + (out.len() - start).next_multiple_of(ALIGN), 0);
}

impl Wal {
    /// Begins an empty log. What the files held must be elsewhere already, and `generation` above every earlier one.
    pub(super) fn create(directory: &Path, size: u64, generation: u64, durable: Revision) -> Result<Self, StoreError> {
        // 2 GiB: lengths are 4 bytes. 256 KiB: room for a batch of small writes.
        let size = size.clamp(256 << 10, 2 << 30);
        let paths = NAMES.map(|name| directory.join(name));
        let [first, second] = &paths;
        let files = [written_file(first, size)?, written_file(second, size)?];
        File::open(directory)
            .and_then(|it| it.sync_all())
            .map_err(|it| failed("making durable", directory, it))?;
        let last = [durable; 2];
        Ok(Self {
            files,
            paths,
            active: 0,
            last,
            size,
            generation,
            position: 0,
            durable,
            buffer: Vec::new(),
        })
    }

    /// The most bytes that one record should take: a batch that ends with it still fits into a file.
    pub(super) fn largest(&self) -> usize {
        usize::try_from(self.size / 2).unwrap_or(usize::MAX)
    }

    /// Writes a batch, not yet durable; together it must fit into a file. `wait` is asked, when the other file is to be
    /// written again, to return once redb holds everything up to the revision it is given.
    pub(super) fn append(
        &mut self,
        payloads: &[Vec<u8>],
        last: Revision,
        wait: impl FnOnce(Revision) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let length: usize = payloads
            .iter()
            .map(|it| (HEAD + it.len()).next_multiple_of(ALIGN))
            .sum();
        if self.position + length as u64 > self.size {
            // The file that is left must be whole before anything is written behind it.
            self.sync()?;
            let other = 1 - self.active;
            wait(self.last[other])?;
            self.active = other;
            self.generation += 1;
            self.position = 0;
        }
        self.buffer.clear();
        for payload in payloads {
            frame(&mut self.buffer, self.generation, self.durable, payload);
        }
        let path = &self.paths[self.active];
        if self.position + self.buffer.len() as u64 > self.size {
            let source = io::Error::new(io::ErrorKind::FileTooLarge, "the batch is larger than a log file");
            return Err(failed("writing", path, source));
        }
        self.files[self.active]
            .write_all_at(&self.buffer, self.position)
            .map_err(|it| failed("writing", path, it))?;
        self.position += self.buffer.len() as u64;
        self.last[self.active] = last;
        Ok(())
    }

    /// Makes everything written durable.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let path = &self.paths[self.active];
        self.files[self.active]
            .sync_data()
            .map_err(|it| failed("making durable", path, it))?;
        self.durable = self.durable.max(self.last[self.active]);
        Ok(())
    }
}

/// A file of this size whose every block was written once, so that `fdatasync` has no metadata to write.
fn written_file(path: &Path, size: u64) -> Result<File, StoreError> {
    let fill = || -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let length = file.metadata()?.len();
        if length != size {
            file.set_len(length.min(size))?;
            let zeros = vec![0; 1 << 20];
            let mut at = length.min(size);
            while at < size {
                let part = zeros.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
                file.write_all_at(&zeros[..part], at)?;
                at += part as u64;
            }
            file.sync_all()?;
        }
        Ok(file)
    };
    fill().map_err(|source| failed("preparing", path, source))
}

fn failed(what: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        what: format!("{what} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 256 << 10;

    fn payload(revision: u64, length: usize) -> Vec<u8> {
        let mut payload = revision.to_le_bytes().to_vec();
        payload.resize(8 + length, revision as u8);
        payload
    }

    fn revisions(recovered: &Recovered) -> Vec<u64> {
        recovered
            .payloads
            .iter()
            .map(|it| u64::from_le_bytes(it[..8].try_into().unwrap()))
            .collect()
    }

    #[test]
    fn files_take_turns_and_the_newest_content_wins() {
        let directory = tempfile::tempdir().unwrap();
        let mut wal = Wal::create(directory.path(), SIZE, 1 << 32, 0).unwrap();
        let mut asked = Vec::new();
        for revision in 1..=100 {
            let wait = |until| {
                asked.push(until);
                Ok(())
            };
            wal.append(&[payload(revision, 20_000)], revision, wait).unwrap();
            wal.sync().unwrap();
        }
        assert_eq!(
            asked[..3],
            [0, 13, 26],
            "each file is free once its own records are elsewhere"
        );
        let recovered = recover(directory.path()).unwrap();
        let found = revisions(&recovered);
        assert_eq!(found.last(), Some(&100));
        assert!(found.is_sorted_by(|a, b| a + 1 == *b), "{found:?}");
        assert_eq!(recovered.durable, 99, "as of the last record");

        // A later life begins with an empty log, whatever lies in the files.
        let mut wal = Wal::create(directory.path(), SIZE, 2 << 32, 100).unwrap();
        wal.append(&[payload(101, 10)], 101, |_| Ok(())).unwrap();
        let found = revisions(&recover(directory.path()).unwrap());
        assert_eq!(found.last(), Some(&101));
    }

    #[test]
    fn a_file_is_durable_before_the_next_one_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut wal = Wal::create(directory.path(), SIZE, 7, 0).unwrap();
        let mut revision = 0;
        while wal.active == 0 {
            revision += 1;
            wal.append(&[payload(revision, 20_000)], revision, |_| Ok(())).unwrap();
        }
        // Nobody asked for it; but a hole between two files would cut off what is acknowledged behind it.
        assert_eq!(recover(directory.path()).unwrap().durable, revision - 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever is torn off an unacknowledged tail is cut; whatever is missing before it is noticed.
        #[test]
        fn a_torn_tail_is_cut_and_a_hole_is_noticed(
            lengths in prop::collection::vec(0usize..300, 1..20),
            synced in 0usize..20,
            damage in 0usize..7_000,
            garbage: [u8; 24],
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut wal = Wal::create(directory.path(), SIZE, 7, 0).unwrap();
            let mut ends = vec![0];
            for (at, length) in lengths.iter().enumerate() {
                let revision = at as u64 + 1;
                wal.append(&[payload(revision, *length)], revision, |_| Ok(())).unwrap();
                ends.push(wal.position as usize);
                if at < synced {
                    wal.sync().unwrap();
                }
            }
            let path = &wal.paths[0];
            let mut bytes = std::fs::read(path).unwrap();
            let whole = recover(directory.path()).unwrap();
            prop_assert_eq!(whole.payloads.len(), lengths.len());
            prop_assert_eq!(whole.durable as usize, synced.min(lengths.len() - 1));

            bytes[damage..damage + garbage.len()].copy_from_slice(&garbage);
            std::fs::write(path, &bytes).unwrap();
            let torn = recover(directory.path()).unwrap();
            let intact = ends.iter().filter(|end| **end <= damage).count() - 1;
            let found = revisions(&torn);
            prop_assert!(found.len() >= intact && found.iter().copied().eq(1..=found.len() as u64));
            let count = lengths.len();
            let last_says = synced.min(count - 1);
            if found.len() < count && ends[count - 1] >= damage + garbage.len() {
                prop_assert_eq!(torn.durable as usize, last_says, "a hole before the last record");
            }
            if synced <= found.len() {
                prop_assert!(torn.durable as usize <= found.len(), "no alarm without a loss");
            }
        }
    }
}
