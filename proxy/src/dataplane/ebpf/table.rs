//! Typed access to BPF maps, many entries per system call where the kernel can (5.6; LPM tries never).

use aya::maps::{MapData, MapError};
use proxy_common::abi::Plain;
use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

/// Commands of bpf(2).
mod command {
    pub(super) const LOOKUP_ELEM: libc::c_long = 1;
    pub(super) const UPDATE_ELEM: libc::c_long = 2;
    pub(super) const DELETE_ELEM: libc::c_long = 3;
    pub(super) const GET_NEXT_KEY: libc::c_long = 4;
    pub(super) const LOOKUP_BATCH: libc::c_long = 24;
    pub(super) const UPDATE_BATCH: libc::c_long = 26;
}

/// Entries per batch: large enough to forget the system call, small enough for the kernel to allocate at once.
const BATCH: usize = 4096;

/// `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// `union bpf_attr` for a batch.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is one of the structures above, laid out as the kernel's and alive for the call; the pointers in it
    // are to buffers of the sizes that the map has, which `Table::new` checked.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_mut(attr), size_of::<T>()) };
    if code < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn address<T>(value: &T) -> u64 {
    core::ptr::from_ref(value) as u64
}

/// A map with keys `K` and values `V`.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    data: MapData,
    name: &'static str,
    flag: &'static str,
    max_entries: u32,
    types: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Wraps a loaded map; `flag` is what raises its size.
    ///
    /// # Errors
    /// When the kernel's sizes are not those of `K` and `V`.
    pub(super) fn new(data: MapData, name: &'static str, flag: &'static str) -> Result<Self, MapError> {
        let info = data.info()?;
        if info.key_size() as usize != size_of::<K>() {
            return Err(MapError::InvalidKeySize {
                size: size_of::<K>(),
                expected: info.key_size() as usize,
            });
        }
        if info.value_size() as usize != size_of::<V>() {
            return Err(MapError::InvalidValueSize {
                size: size_of::<V>(),
                expected: info.value_size() as usize,
            });
        }
        Ok(Self {
            max_entries: info.max_entries(),
            data,
            name,
            flag,
            types: PhantomData,
        })
    }

    /// The map's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The flag that raises its size, without dashes.
    pub(super) fn flag(&self) -> &'static str {
        self.flag
    }

    /// Its size in entries.
    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn fd(&self) -> RawFd {
        self.data.fd().as_fd().as_raw_fd()
    }

    fn element(&self, key: &K) -> Element {
        Element {
            map_fd: self.fd() as u32,
            key: address(key),
            ..Element::default()
        }
    }

    /// One value.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        let mut attr = self.element(key);
        attr.value_or_next = core::ptr::from_mut(&mut value) as u64;
        match bpf(command::LOOKUP_ELEM, &mut attr) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one entry.
    pub(super) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.element(key);
        attr.value_or_next = address(value);
        bpf(command::UPDATE_ELEM, &mut attr)
    }

    /// Writes entries in order. On error, how many were written.
    pub(super) fn put_all(&self, keys: &[K], values: &[V]) -> Result<(), (usize, io::Error)> {
        debug_assert_eq!(keys.len(), values.len());
        let mut done = 0;
        while done < keys.len() {
            let count = (keys.len() - done).min(BATCH);
            let mut attr = Batch {
                keys: keys[done..].as_ptr() as u64,
                values: values[done..].as_ptr() as u64,
                count: count as u32,
                map_fd: self.fd() as u32,
                ..Batch::default()
            };
            match bpf(command::UPDATE_BATCH, &mut attr) {
                Ok(()) => done += count,
                Err(error) if unsupported(&error) => return self.put_singly(keys, values, done),
                Err(error) => return Err((done + (attr.count as usize).min(count), error)),
            }
        }
        Ok(())
    }

    fn put_singly(&self, keys: &[K], values: &[V], from: usize) -> Result<(), (usize, io::Error)> {
        for at in from..keys.len() {
            self.put(&keys[at], &values[at]).map_err(|error| (at, error))?;
        }
        Ok(())
    }

    /// Removes an entry; one that is not there counts as removed.
    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        match bpf(command::DELETE_ELEM, &mut self.element(key)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Everything in the map. Entries that come or go meanwhile may be missed.
    pub(super) fn read_all(&self) -> io::Result<Vec<(K, V)>> {
        match self.read_batches() {
            Err(error) if unsupported(&error) => self.read_singly(),
            other => other,
        }
    }

    fn read_batches(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let size = BATCH.min(self.max_entries as usize).max(64);
        let mut keys = vec![K::default(); size];
        let mut values = vec![V::default(); size];
        // The kernel's cursor: a key or a bucket number; both fit into a key-sized buffer of at least four bytes.
        let mut cursor = vec![0u8; size_of::<K>().max(8)];
        let mut started = false;
        loop {
            let mut attr = Batch {
                in_batch: if started { cursor.as_ptr() as u64 } else { 0 },
                out_batch: cursor.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: keys.len() as u32,
                map_fd: self.fd() as u32,
                ..Batch::default()
            };
            let result = bpf(command::LOOKUP_BATCH, &mut attr);
            let last = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    // One hash bucket holds more than the buffer.
                    keys.resize(keys.len() * 2, K::default());
                    values.resize(values.len() * 2, V::default());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = attr.count as usize;
            entries.extend(keys[..count].iter().copied().zip(values[..count].iter().copied()));
            started = true;
            if last {
                return Ok(entries);
            }
        }
    }

    fn read_singly(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        let mut key: Option<K> = None;
        loop {
            let mut next = K::default();
            let mut attr = Element {
                map_fd: self.fd() as u32,
                key: key.as_ref().map_or(0, address),
                value_or_next: core::ptr::from_mut(&mut next) as u64,
                ..Element::default()
            };
            match bpf(command::GET_NEXT_KEY, &mut attr) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next)? {
                entries.push((next, value));
            }
            key = Some(next);
        }
    }
}

/// Whether the kernel does not know batches for this map.
fn unsupported(error: &io::Error) -> bool {
    // ENOTSUPP is the kernel's own number 524.
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}
