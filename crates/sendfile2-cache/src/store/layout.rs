//! The bytes on the disk: how they are written and read. Pure: no I/O.
//!
//! ```text
//! file     meta (superblock, two halves for bans) | region | region | …
//! region   header | record | record | …        free        … | table | footer
//! record   header | body | checksums of the body's chunks | head | to the next 64 bytes
//! ```
//!
//! A response that is larger than one record has several, its parts, each with a key of its own, and
//! one more for its head, without a body, which says of which set the parts are, and how long it is.
//!
//! What the store believes without a doubt (headers, tables, bans) has a keyed hash: no body that an
//! origin makes up passes for it. Bodies and heads have checksums.

use super::bytes::{Get, Put};

/// The alignment of regions, and of the file's beginning before them.
pub(super) const UNIT: u64 = 2 << 20;
/// Where records, and the list's bans, begin: at multiples of this.
pub(super) const ALIGN: u32 = 64;
/// Bytes of a body that have a checksum of their own.
pub(super) const CHUNK: u32 = 64 << 10;
pub(super) const SUPERBLOCK: usize = 4096;
pub(super) const REGION_HEADER: u32 = 64;
pub(super) const RECORD_HEADER: u32 = 128;
pub(super) const ENTRY: u32 = 64;
pub(super) const FOOTER: u32 = 64;
/// The version of all this.
pub(super) const VERSION: u32 = 2;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"sf2cache";
const REGION_MAGIC: [u8; 8] = *b"sf2regn1";
const FOOTER_MAGIC: [u8; 8] = *b"sf2tabl1";
const RECORD_MAGIC: [u8; 4] = *b"rec1";

pub(super) type Mac = [u8; 16];

/// The secret of a store, by which it knows what it has written itself.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(super) fn mac(&self, bytes: &[u8]) -> Mac {
        let mut mac = [0; 16];
        mac.copy_from_slice(&blake3::keyed_hash(&self.0, bytes).as_bytes()[..16]);
        mac
    }

    /// Fills up to `len` bytes and puts the hash into the last 16 of them.
    fn sealed<const N: usize>(&self, put: Put) -> [u8; N] {
        let mut bytes = [0; N];
        let put = put.done();
        bytes[..put.len()].copy_from_slice(&put);
        let mac = self.mac(&bytes[..N - 16]);
        bytes[N - 16..].copy_from_slice(&mac);
        bytes
    }

    fn opened<'a>(&self, bytes: &'a [u8], magic: &[u8]) -> Option<Get<'a>> {
        let (content, mac) = bytes.split_last_chunk::<16>()?;
        let content_of = content.strip_prefix(magic)?;
        (self.mac(content) == *mac).then_some(Get(content_of))
    }
}

/// The sizes of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes before the first region.
    pub(super) meta: u64,
    /// Bytes of a region.
    pub(super) region: u32,
    pub(super) regions: u32,
}

impl Sizes {
    /// The sizes that a store of `size` bytes in regions of `region` has.
    pub(super) fn of(size: u64, region: u64) -> Result<Self, String> {
        if !(UNIT..=8 * UNIT).contains(&region) || region % UNIT != 0 {
            return Err(format!("a region of {region} bytes is not 2 to 16 MiB in steps of 2"));
        }
        // Bans are the more the more there is to ban.
        let meta = UNIT * (1 + size.div_ceil(1 << 30).clamp(1, 1024));
        let regions = size.saturating_sub(meta) / region;
        let sizes = u32::try_from(regions).ok().zip(u32::try_from(region).ok());
        match sizes {
            Some((regions, region)) if regions >= 4 => Ok(Sizes { meta, region, regions }),
            Some(_) => {
                Err(format!("{size} bytes are too few: {}M at least", (meta + 4 * region) >> 20))
            }
            None => Err(format!("{size} bytes are too many")),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.meta + u64::from(self.region) * u64::from(self.regions)
    }

    pub(super) fn start(&self, region: u32) -> u64 {
        self.meta + u64::from(self.region) * u64::from(region)
    }

    /// The most that a response may have, head and body.
    pub(super) fn most(&self) -> u64 {
        self.size() / 16
    }

    /// The most that one record may have, head and body.
    pub(super) fn most_in_one(&self) -> u64 {
        let chunks = self.region / CHUNK + 1;
        let room = self.region - REGION_HEADER - FOOTER - ENTRY - RECORD_HEADER - ALIGN;
        u64::from(room - 4 * chunks).min(self.most())
    }

    /// The bytes of a body that each of its parts has, but for the last: four have room in a region.
    pub(super) fn part(&self) -> u32 {
        self.region / 4 - 1024
    }

    /// The two halves in which bans are listed.
    pub(super) fn half(&self, second: bool) -> std::ops::Range<u64> {
        let middle = self.meta / 2;
        if second { middle..self.meta } else { SUPERBLOCK as u64..middle }
    }
}

pub(super) fn superblock(sizes: &Sizes, secret: &Secret) -> Vec<u8> {
    let mut put = Put::new(&SUPERBLOCK_MAGIC);
    put.u32(VERSION).u64(sizes.meta).u32(sizes.region).u32(sizes.regions).bytes(&secret.0);
    let mut block = put.done();
    block.resize(SUPERBLOCK - 16, 0);
    let sum = blake3::hash(&block);
    block.extend_from_slice(&sum.as_bytes()[..16]);
    block
}

/// The facts in a store's first bytes; or why they are not a store's.
pub(super) fn read_superblock(block: &[u8]) -> Result<(Sizes, Secret), String> {
    let Some(rest) = block.strip_prefix(&SUPERBLOCK_MAGIC) else {
        return Err("it begins with something else".into());
    };
    let mut get = Get(rest);
    let version = get.u32().ok_or("it is cut short")?;
    if version != VERSION {
        return Err(format!("it has version {version}, and this program knows {VERSION}"));
    }
    let whole = block.get(..SUPERBLOCK).and_then(|b| b.split_last_chunk::<16>());
    let (content, sum) = whole.ok_or("it is cut short")?;
    if blake3::hash(content).as_bytes()[..16] != *sum {
        return Err("the checksum of its first block is wrong".into());
    }
    let read = (|| Some((get.u64()?, get.u32()?, get.u32()?, get.array()?)))();
    let (meta, region, regions, secret) = read.ok_or("it is cut short")?;
    let sizes = Sizes { meta, region, regions };
    let sane = u64::from(region) % UNIT == 0
        && (UNIT..=8 * UNIT).contains(&u64::from(region))
        && meta % UNIT == 0
        && (2 * UNIT..=1025 * UNIT).contains(&meta)
        && regions >= 4;
    if sane { Ok((sizes, Secret(secret))) } else { Err("its sizes are not a store's".into()) }
}

pub(super) fn region_header(secret: &Secret, region: u32, generation: u64) -> [u8; 64] {
    let mut put = Put::new(&REGION_MAGIC);
    put.u32(region).u64(generation);
    secret.sealed(put)
}

/// The generation of a region, by its first bytes.
pub(super) fn read_region_header(secret: &Secret, region: u32, bytes: &[u8]) -> Option<u64> {
    let mut get = secret.opened(bytes.get(..64)?, &REGION_MAGIC)?;
    (get.u32()? == region).then(|| get.u64())?
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its body is still coming.
    Pending,
    Whole,
    /// A new head and state for the body of another record.
    Refresh(BodyAt),
    /// The head of a response that is in parts. Its body's length is that of all of them.
    Head(Set),
    /// A part of a body. Its state says of which one.
    Part,
}

impl Kind {
    pub(super) fn role(&self) -> Role {
        match self {
            Kind::Pending | Kind::Whole | Kind::Refresh(_) => Role::Whole,
            Kind::Head(_) => Role::Head,
            Kind::Part => Role::Part,
        }
    }
}

/// The role of a record in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// All of it, or all but a head that is older.
    Whole,
    /// The head, and no body.
    Head,
    /// A part of the body, and no head.
    Part,
}

/// The parts of a response: those that have this number in their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) id: u64,
    /// Bytes of all of them.
    pub(super) total: u64,
}

/// The place of a body: that of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyAt {
    pub(super) region: u32,
    pub(super) generation: u64,
    pub(super) record: u32,
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// The region's generation, and the place in it: a record is nowhere else.
    pub(super) generation: u64,
    pub(super) offset: u32,
    /// Bytes to the next record.
    pub(super) span: u32,
    pub(super) key: [u8; 16],
    pub(super) state: [u8; 24],
    /// Later ones have larger numbers; bans are counted with them.
    pub(super) seq: u64,
    pub(super) head_len: u32,
    pub(super) body_len: u32,
    /// The checksum of the body's checksums.
    pub(super) sum: u32,
    /// The checksum of the head.
    pub(super) head_sum: u32,
}

/// Bytes of the checksums of a body.
pub(super) fn sums_len(body_len: u32) -> u32 {
    body_len.div_ceil(CHUNK) * 4
}

impl Record {
    /// The room that a record takes with its body and its head.
    pub(super) fn span_of(head_len: u32, body_len: u32) -> Option<u32> {
        RECORD_HEADER
            .checked_add(body_len)?
            .checked_add(sums_len(body_len))?
            .checked_add(head_len)?
            .checked_next_multiple_of(ALIGN)
    }

    /// Where its head is in the region.
    pub(super) fn head_at(&self) -> u32 {
        match self.kind {
            Kind::Refresh(_) | Kind::Head(_) => self.offset + RECORD_HEADER,
            _ => self.offset + RECORD_HEADER + self.body_len + sums_len(self.body_len),
        }
    }

    pub(super) fn encode(&self, secret: &Secret) -> [u8; 128] {
        let mut put = Put::new(&RECORD_MAGIC);
        let nowhere = BodyAt { region: 0, generation: 0, record: 0 };
        let (kind, body, set) = match self.kind {
            Kind::Pending => (0, nowhere, None),
            Kind::Whole => (1, nowhere, None),
            Kind::Refresh(body) => (2, body, None),
            Kind::Head(set) => (3, nowhere, Some(set)),
            Kind::Part => (4, nowhere, None),
        };
        // What a head has not is the place of a body.
        let generation = set.map_or(body.generation, |set| set.id);
        let total = set.map_or(0, |set| set.total);
        put.u32(kind).u64(self.generation).u32(self.offset).u32(self.span);
        put.bytes(&self.key).bytes(&self.state).u64(self.seq);
        put.u32(self.head_len).u32(self.body_len).u32(self.sum);
        put.u32(body.region).u64(generation).u32(body.record).u32(self.head_sum).u64(total);
        secret.sealed(put)
    }

    /// The header at `offset` of a region of so many `bytes` for records, and of this generation.
    pub(super) fn decode(
        secret: &Secret,
        header: &[u8],
        generation: u64,
        offset: u32,
        end: u32,
    ) -> Option<Self> {
        let mut get = secret.opened(header.get(..128)?, &RECORD_MAGIC)?;
        let kind = get.u32()?;
        let (its_generation, its_offset, span) = (get.u64()?, get.u32()?, get.u32()?);
        let (key, state, seq) = (get.array()?, get.array()?, get.u64()?);
        let (head_len, body_len, sum) = (get.u32()?, get.u32()?, get.u32()?);
        let body = BodyAt { region: get.u32()?, generation: get.u64()?, record: get.u32()? };
        let (head_sum, total) = (get.u32()?, get.u64()?);
        let (kind, here) = match kind {
            0 => (Kind::Pending, body_len),
            1 => (Kind::Whole, body_len),
            2 => (Kind::Refresh(body), 0),
            3 if body_len == 0 => (Kind::Head(Set { id: body.generation, total }), 0),
            4 => (Kind::Part, body_len),
            _ => return None,
        };
        let fits = Record::span_of(head_len, here)? <= span
            && span % ALIGN == 0
            && offset.checked_add(span)? <= end
            && (its_generation, its_offset) == (generation, offset);
        fits.then_some(Record {
            kind,
            generation,
            offset,
            span,
            key,
            state,
            seq,
            head_len,
            body_len,
            sum,
            head_sum,
        })
    }
}

/// A record as the table of its region has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tabled {
    pub(super) key: [u8; 16],
    pub(super) state: [u8; 24],
    pub(super) seq: u64,
    pub(super) offset: u32,
    pub(super) head_len: u32,
    /// Whether it is a [`Kind::Refresh`]: its header says where the body is.
    pub(super) refresh: bool,
    pub(super) role: Role,
    pub(super) body_len: u32,
    pub(super) sum: u32,
}

/// In the length of a head, which is less than these.
const REFRESH: u32 = 1 << 31;
const HEAD: u32 = 1 << 30;
const PART: u32 = 1 << 29;

impl Tabled {
    pub(super) fn of(record: &Record) -> Self {
        let Record { key, state, seq, offset, head_len, body_len, sum, kind, .. } = *record;
        let refresh = matches!(kind, Kind::Refresh(_));
        let role = kind.role();
        Tabled { key, state, seq, offset, head_len, refresh, role, body_len, sum }
    }

    /// Where its head is in the region.
    pub(super) fn head_at(&self) -> u32 {
        let body = if self.refresh { 0 } else { self.body_len + sums_len(self.body_len) };
        self.offset + RECORD_HEADER + body
    }
}

/// The table of a region, with its footer: the last bytes of the region.
pub(super) fn table(secret: &Secret, generation: u64, entries: &[Tabled]) -> Vec<u8> {
    let mut put = Put::new(b"");
    for e in entries {
        let role = match e.role {
            Role::Whole => 0,
            Role::Head => HEAD,
            Role::Part => PART,
        };
        let head = e.head_len | role | if e.refresh { REFRESH } else { 0 };
        put.bytes(&e.key).bytes(&e.state).u64(e.seq).u32(e.offset).u32(head);
        put.u32(e.body_len).u32(e.sum);
    }
    let mut bytes = put.done();
    let mut footer = Put::new(&FOOTER_MAGIC);
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    footer.u64(generation).u32(count).bytes(&secret.mac(&bytes));
    bytes.extend_from_slice(&secret.sealed::<64>(footer));
    bytes
}

/// The number of entries that the footer of a region of this generation tells, and their hash.
pub(super) fn read_footer(secret: &Secret, generation: u64, bytes: &[u8]) -> Option<(u32, Mac)> {
    let mut get = secret.opened(bytes.get(..64)?, &FOOTER_MAGIC)?;
    (get.u64()? == generation).then(|| Some((get.u32()?, get.array()?)))?
}

/// The entries, if they are what the footer says, and within the `end` of what records may have.
pub(super) fn read_table(
    secret: &Secret,
    mac: &Mac,
    bytes: &[u8],
    end: u32,
) -> Option<Vec<Tabled>> {
    if secret.mac(bytes) != *mac {
        return None;
    }
    bytes.chunks_exact(ENTRY as usize).map(|entry| read_entry(entry, end)).collect()
}

fn read_entry(entry: &[u8], end: u32) -> Option<Tabled> {
    let mut get = Get(entry);
    let (key, state, seq) = (get.array()?, get.array()?, get.u64()?);
    let (offset, head, body_len, sum) = (get.u32()?, get.u32()?, get.u32()?, get.u32()?);
    let (head_len, refresh) = (head & !(REFRESH | HEAD | PART), head & REFRESH != 0);
    let role = match head & (HEAD | PART) {
        0 => Role::Whole,
        HEAD => Role::Head,
        PART => Role::Part,
        _ => return None,
    };
    let span = Record::span_of(head_len, if refresh { 0 } else { body_len })?;
    (offset.checked_add(span)? <= end && offset >= REGION_HEADER).then_some(Tabled {
        key,
        state,
        seq,
        offset,
        head_len,
        refresh,
        role,
        body_len,
        sum,
    })
}
