//! A directory with a file for each worker: discovery for one machine, with nothing to run.
//!
//! A worker writes its entry beside the directory's others under a hidden name, locks it (`flock`), and renames
//! it into place, so that no reader sees half of one. The lock lasts as long as the worker's process, however
//! that ends: an entry that can be locked belongs to nobody any more, and whoever notices removes it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Discovery, DiscoveryError, Found, Listing, Registration};
use crate::address::Address;

/// How often a router looks. A worker that appears is found after this at the latest.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// An entry is not read beyond this: 256 endpoints with names of 256 bytes, each byte escaped, fit.
const ENTRY_BYTES_MAX: u64 = 256 * 1024;
/// A hidden file that is not locked after this long is what a worker has left that was killed while it wrote.
const UNFINISHED_AFTER: Duration = Duration::from_secs(60);
/// The longest name of a namespace's directory; file systems allow 255.
const NAME_BYTES_MAX: usize = 200;

/// Overrides the directory below which each namespace has its own.
const RUNTIME_DIR: &str = "HEADRACE_RUNTIME_DIR";
const FORMAT: &str = "headrace 1";

/// Mode bits: group or others may write.
const OTHERS_WRITE: u32 = 0o022;
/// Mode bits: only the owner of a file may remove it.
const STICKY: u32 = 0o1000;

/// A directory of entries.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    /// Only this user's workers may be listed there.
    own: bool,
}

impl Directory {
    /// The entries in `path`, which is made when a worker registers. It must not be writable by everybody.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, own: false }
    }

    /// The directory that `file:///path` names; `None` when it names none.
    #[must_use]
    pub fn from_url(url: &str) -> Option<Self> {
        let path = url.strip_prefix("file://")?;
        path.starts_with('/').then(|| Self::new(path.into()))
    }

    /// This user's directory for a namespace: below `$HEADRACE_RUNTIME_DIR`, else
    /// `$XDG_RUNTIME_DIR/headrace`, else `headrace-UID` in the directory for temporary files. Nobody else can
    /// write there; a directory where somebody can is refused when it is used.
    #[must_use]
    pub fn of_user(namespace: &str) -> Self {
        let base = match (std::env::var_os(RUNTIME_DIR), std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(set), _) if !set.is_empty() => PathBuf::from(set),
            (_, Some(runtime)) if !runtime.is_empty() => Path::new(&runtime).join("headrace"),
            _ => std::env::temp_dir().join(format!("headrace-{}", user_id())),
        };
        Self { path: base.join(directory_name(namespace)), own: true }
    }

    /// Where the entries are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory, and whatever is missing above it, for this user alone.
    fn make(&self) -> Result<(), DiscoveryError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(|source| self.io(source))?;
        self.check()
    }

    /// Refuses a directory in which others could list workers of their own.
    fn check(&self) -> Result<(), DiscoveryError> {
        let insecure = |reason: String| DiscoveryError::Insecure { place: self.place(), reason };
        let mut checked = vec![self.path.as_path()];
        if self.own {
            // Whoever can rename the namespace's directory can put another in its place.
            checked.extend(self.path.parent());
        }
        for path in checked {
            let found = fs::metadata(path).map_err(|source| self.io(source))?;
            if self.own && found.uid() != user_id() {
                return Err(insecure(format!("{} belongs to another user", path.display())));
            }
            let everybody = if self.own { OTHERS_WRITE } else { 0o002 };
            if found.mode() & everybody != 0 && found.mode() & STICKY == 0 {
                return Err(insecure(format!("others may write to {}", path.display())));
            }
        }
        Ok(())
    }

    fn io(&self, source: io::Error) -> DiscoveryError {
        DiscoveryError::Io { place: self.place(), source }
    }
}

impl Discovery for Directory {
    fn watch(&self, runtime: &Handle) -> watch::Receiver<Found> {
        let (list, receiver) = watch::channel(None);
        runtime.spawn(look(self.clone(), list));
        receiver
    }

    fn register(&self, listing: &Listing) -> Result<Registration, DiscoveryError> {
        self.make()?;
        let name = escape(&listing.instance_id);
        let hidden = self.path.join(format!(".{name}"));
        let entry = Entry {
            path: self.path.join(name),
            file: write_entry(&hidden, listing).map_err(|e| self.io(e))?,
        };
        fs::rename(&hidden, &entry.path).map_err(|source| self.io(source))?;
        Ok(Registration::new(entry))
    }

    fn place(&self) -> String {
        format!("file://{}", self.path.display())
    }
}

/// A worker's own entry.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    /// Holds the lock.
    #[expect(dead_code, reason = "held for its lock")]
    file: File,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Whoever looks next removes what cannot be removed here.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_entry(path: &Path, listing: &Listing) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.lock()?;
    file.write_all(encode(listing).as_bytes())?;
    Ok(file)
}

/// Looks again and again until nobody is interested.
async fn look(directory: Directory, list: watch::Sender<Found>) {
    let mut scanner = Scanner { directory, known: HashMap::new(), last_error: None };
    loop {
        // File systems can be slow: not on the threads that serve links.
        let scanned = tokio::task::spawn_blocking(move || {
            let found = scanner.scan();
            (scanner, found)
        });
        let Ok((returned, found)) = scanned.await else { return };
        scanner = returned;
        if found.is_some() {
            list.send_if_modified(|now| {
                let changed = *now != found;
                *now = found;
                changed
            });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = list.closed() => return,
        }
    }
}

/// Reads a directory again and again. Files stay open, so that each look costs one lock for each entry.
#[derive(Debug)]
struct Scanner {
    directory: Directory,
    known: HashMap<OsString, (File, Option<Listing>)>,
    last_error: Option<String>,
}

impl Scanner {
    /// The workers that are listed and live, by name; `None` when the directory cannot be read.
    fn scan(&mut self) -> Option<Arc<[Listing]>> {
        match self.read() {
            Ok(found) => {
                self.last_error = None;
                Some(found)
            }
            Err(DiscoveryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // No worker has ever registered there.
                self.known.clear();
                Some(Arc::from([]))
            }
            Err(error) => {
                let text = error.to_string();
                if self.last_error.as_ref() != Some(&text) {
                    tracing::warn!("{text}; the last list stands");
                    self.last_error = Some(text);
                }
                None
            }
        }
    }

    fn read(&mut self) -> Result<Arc<[Listing]>, DiscoveryError> {
        self.directory.check()?;
        let io = |source| self.directory.io(source);
        let mut known = HashMap::new();
        for found in fs::read_dir(&self.directory.path).map_err(io)? {
            let found = found.map_err(io)?;
            let (name, path) = (found.file_name(), found.path());
            if name.as_encoded_bytes().starts_with(b".") {
                remove_if_unfinished(&path);
                continue;
            }
            // One that cannot be opened has just gone.
            let Some(entry) = self.known.remove(&name).or_else(|| open_entry(&path)) else { continue };
            if is_left(&entry.0) {
                let _ = fs::remove_file(&path);
            } else {
                known.insert(name, entry);
            }
        }
        self.known = known;
        let mut names: Vec<_> = self.known.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        Ok(names.into_iter().filter_map(|(_, (_, listing))| listing.clone()).collect())
    }
}

/// Opens an entry and reads it. What cannot be understood is kept as nothing, so that it is not read again.
fn open_entry(path: &Path) -> Option<(File, Option<Listing>)> {
    let file = File::open(path).ok()?;
    let mut text = String::new();
    let listing = (&file).take(ENTRY_BYTES_MAX).read_to_string(&mut text).ok().and_then(|_| decode(&text));
    if listing.is_none() {
        tracing::warn!(path = %path.display(), "this entry cannot be understood and is passed over");
    }
    Some((file, listing))
}

/// Whether the process that wrote an entry has ended.
fn is_left(entry: &File) -> bool {
    match entry.try_lock_shared() {
        Ok(()) => {
            // Given back at once: another router must not take this look for the worker's lock.
            let _ = entry.unlock();
            true
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

fn remove_if_unfinished(path: &Path) {
    let old = |found: fs::Metadata| found.modified().ok()?.elapsed().ok();
    let age = fs::metadata(path).ok().and_then(old);
    if age.is_some_and(|age| age > UNFINISHED_AFTER) && File::open(path).is_ok_and(|file| is_left(&file)) {
        let _ = fs::remove_file(path);
    }
}

// --- the text of an entry ---

fn encode(listing: &Listing) -> String {
    let mut text = format!("{FORMAT}\naddress {}\n", escape(&absolute(&listing.address).to_string()));
    text += &format!("instance {}\n", escape(&listing.instance_id));
    for endpoint in &listing.endpoints {
        text += &format!("endpoint {}\n", escape(endpoint));
    }
    text
}

/// Reads an entry; lines of an unknown kind are left to later versions.
fn decode(text: &str) -> Option<Listing> {
    let mut lines = text.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let (mut address, mut instance_id, mut endpoints) = (None, None, Vec::new());
    for line in lines {
        match line.split_once(' ')? {
            ("address", value) => address = Some(unescape(value)?.parse().ok()?),
            ("instance", value) => instance_id = Some(unescape(value)?),
            ("endpoint", value) => endpoints.push(unescape(value)?),
            _ => {}
        }
    }
    Some(Listing { address: address?, instance_id: instance_id?, endpoints })
}

/// A path that means the same in every working directory.
fn absolute(address: &Address) -> Address {
    match address {
        Address::Unix(path) => Address::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        Address::Tcp { .. } => address.clone(),
    }
}

/// Percent-encodes all but what a file name, or a word of a line, can hold.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'/' | b':' | b'[' | b']' => {
                escaped.push(char::from(byte));
            }
            b'.' if !escaped.is_empty() => escaped.push('.'),
            _ => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A namespace as the name of a directory.
fn directory_name(namespace: &str) -> String {
    let escaped = escape(namespace).replace('/', "%2F");
    if escaped.len() <= NAME_BYTES_MAX && !escaped.is_empty() {
        return escaped;
    }
    // Too long for a name: its beginning, for whoever looks, and its hash.
    let beginning: String = escaped.chars().take(NAME_BYTES_MAX - 20).collect();
    format!("{beginning}%~{:016x}", crate::router::name_hash(namespace))
}

fn user_id() -> u32 {
    // A process belongs to its user, and so do its own entries in /proc.
    fs::metadata("/proc/self").map_or(u32::MAX, |found| found.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(address: &str) -> Listing {
        Listing {
            address: address.parse().unwrap(),
            instance_id: "0123456789abcdef".to_owned(),
            endpoints: vec!["chat".to_owned(), "two words\nand % lines".to_owned()],
        }
    }

    #[test]
    fn entries_round_trip() {
        for address in ["127.0.0.1:80", "[::1]:7411", "unix:/run/a b/%41"] {
            let listing = listing(address);
            assert_eq!(decode(&encode(&listing)), Some(listing));
        }
        let later = encode(&listing("127.0.0.1:80")) + "zone b\n";
        assert_eq!(decode(&later), Some(listing("127.0.0.1:80")));
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let whole = encode(&listing("127.0.0.1:80"));
        for text in
            ["", "headrace 2\n", "headrace 1\n", "headrace 1\naddress x\n", "headrace 1\naddress %4\n"]
        {
            assert_eq!(decode(text), None, "{text:?}");
        }
        // Cut anywhere before the last line, it lacks something or is shorter by whole endpoints.
        for end in 0..whole.len() {
            if let Some(cut) = whole.get(..end).and_then(decode) {
                assert_eq!(cut.address, "127.0.0.1:80".parse().unwrap());
            }
        }
    }

    #[test]
    fn a_relative_socket_is_listed_by_its_full_path() {
        let entry = decode(&encode(&listing("unix:sockets/a"))).unwrap();
        let Address::Unix(path) = entry.address else { panic!("no socket: {entry:?}") };
        assert!(path.is_absolute() && path.ends_with("sockets/a"));
    }

    #[test]
    fn every_namespace_has_a_directory_of_its_own() {
        let long = "n".repeat(256);
        let other = format!("{}m", "n".repeat(255));
        let names = ["default", "a/b", "a%2Fb", "..", ".", ".hidden", "ä", "", &long, &other];
        let directories: std::collections::HashSet<_> =
            names.iter().map(|name| directory_name(name)).collect();
        assert_eq!(directories.len(), names.len());
        for name in directories {
            assert!(!name.starts_with('.') && !name.contains('/') && !name.is_empty() && name.len() < 256);
        }
    }
}
