//! Where a transaction's new bytes go: packs that are uploaded while they grow, or the record itself if little.
//!
//! Invariant: memory is bounded by [`Objects::part_bytes`] times the parts in flight, plus [`TAIL_BYTES_MAX`]. A pack is
//! durable before [`Sink::finish`] returns. A sink that is dropped unfinished leaves no object behind but packs
//! that were completed, which [`Sink::abandon`] removes.

use std::collections::VecDeque;

use bytes::Bytes;
use object_store::{MultipartUpload, PutPayload};
use revfs_protocol::{BlockSize, FileId};

use super::format::pack_object;
use super::objects::Objects;
use super::pack::{BlockHash, Hashed, PACK_DATA_BYTES_MAX, PackBuilder, Unhashed};
use super::record::{INLINE_BLOCKS_MAX, INLINE_BYTES_MAX, PackRef, Place};
use crate::env;
use crate::store::Codec;

/// Parts on their way at once.
const PARTS_IN_FLIGHT: usize = 3;
/// Partial and compressed blocks that wait for the full ones to end, bytes.
const TAIL_BYTES_MAX: usize = 32 << 20;

/// A part on its way, which brings the hashes that it owed.
type Part = tokio::task::JoinHandle<object_store::Result<Hashed>>;

/// A block that gets its offset when the tail is written.
struct TailBlock {
    slot: u64,
    file: FileId,
    block: u64,
    codec: Codec,
    data: Bytes,
    hash: BlockHash,
}

/// A tail block that has its final place.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// The file.
    pub file: FileId,
    /// The block.
    pub block: u64,
    /// The slot that it had.
    pub slot: u64,
    /// Where it is.
    pub place: Place,
}

struct Current {
    uuid: uuid::Uuid,
    builder: PackBuilder,
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: VecDeque<Part>,
}

/// Collects new bytes.
pub struct Sink {
    objects: Objects,
    packs: Vec<PackRef>,
    current: Option<Current>,
    tail: Vec<TailBlock>,
    tail_bytes: usize,
    slots: u64,
    settled: Vec<Settled>,
    /// Where a pack ends and the next begins, bytes.
    pack_bytes_max: u64,
}

impl Sink {
    /// A sink without bytes.
    pub fn new(objects: Objects) -> Sink {
        Sink {
            objects,
            packs: Vec::new(),
            current: None,
            tail: Vec::new(),
            tail_bytes: 0,
            slots: 0,
            settled: Vec::new(),
            pack_bytes_max: PACK_DATA_BYTES_MAX,
        }
    }

    /// Adds full raw blocks that lie back to back; answers the place of the first. Hashes that are not given are computed
    /// beside the caller.
    pub async fn put_full(
        &mut self,
        data: Bytes,
        block_size: BlockSize,
        hashes: Option<&[BlockHash]>,
    ) -> object_store::Result<Place> {
        self.make_room(data.len() as u64).await?;
        let pack = self.packs.len() as u32;
        let current = self.current();
        let offset = current.builder.push_full(data, block_size, hashes);
        self.send_parts(self.objects.part_bytes()).await?;
        Ok(Place::Stored { pack, offset, len: block_size.bytes() as u32, codec: Codec::Raw })
    }

    /// Adds a partial or compressed block; answers its slot.
    pub async fn put_packed(
        &mut self,
        owner: (FileId, u64),
        data: Bytes,
        codec: Codec,
        hash: BlockHash,
    ) -> object_store::Result<u64> {
        self.slots += 1;
        let slot = self.slots;
        self.tail_bytes += data.len();
        self.tail.push(TailBlock { slot, file: owner.0, block: owner.1, codec, data, hash });
        if self.tail_bytes > TAIL_BYTES_MAX {
            self.write_tail().await?;
        }
        Ok(slot)
    }

    /// Blocks that got their places since the last call.
    pub fn take_settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    /// Completes what is there, so that it can be read back; answers the object of a pack of this sink.
    pub async fn complete(&mut self) -> object_store::Result<()> {
        self.write_tail().await?;
        self.close_pack().await
    }

    /// The object that pack number `pack` is.
    pub fn object(&self, pack: u32) -> Option<object_store::path::Path> {
        self.packs.get(pack as usize).and_then(|pack| pack.uuid).map(pack_object)
    }

    /// Ends it: all bytes are durable, or are answered to travel inside the record.
    pub async fn finish(&mut self) -> object_store::Result<(Vec<PackRef>, Vec<u8>)> {
        let small = self.packs.is_empty()
            && self.tail.len() + self.current.as_ref().map_or(0, |current| current.builder.blocks())
                <= INLINE_BLOCKS_MAX
            && self.current.as_ref().is_none_or(|current| current.upload.is_none())
            && self.current.as_ref().map_or(0, |current| current.builder.pending()) + self.tail_bytes
                <= INLINE_BYTES_MAX - 8 * self.tail.len().min(INLINE_BYTES_MAX / 8);
        if !small {
            self.complete().await?;
            return Ok((self.packs.clone(), Vec::new()));
        }
        self.write_tail().await?;
        let Some(mut current) = self.current.take() else { return Ok((Vec::new(), Vec::new())) };
        let pack = current.builder.finish(None);
        let inline = current.builder.take_parts().concat();
        self.packs.push(pack);
        Ok((self.packs.clone(), inline))
    }

    /// Removes packs that nothing refers to and nothing ever will.
    pub async fn abandon(&mut self) {
        self.current = None;
        for pack in self.packs.drain(..) {
            let Some(uuid) = pack.uuid else { continue };
            if let Err(error) = self.objects.remove(&pack_object(uuid)).await {
                log::warn!(
                    "pack {uuid} of a commit that failed stays behind, `revfs verify` lists it: {error}"
                );
            }
        }
    }

    fn current(&mut self) -> &mut Current {
        self.current.get_or_insert_with(|| Current {
            uuid: env::random_uuid(),
            builder: PackBuilder::default(),
            upload: None,
            in_flight: VecDeque::new(),
        })
    }

    async fn make_room(&mut self, len: u64) -> object_store::Result<()> {
        let used = self.current.as_ref().map_or(0, |current| current.builder.data_len());
        if used > 0 && used + self.tail_bytes as u64 + len > self.pack_bytes_max {
            self.complete().await?;
        }
        Ok(())
    }

    async fn write_tail(&mut self) -> object_store::Result<()> {
        let tail = std::mem::take(&mut self.tail);
        self.tail_bytes = 0;
        for block in tail {
            let len = block.data.len() as u32;
            let used = self.current.as_ref().map_or(0, |current| current.builder.data_len());
            if used > 0 && used + u64::from(len) > self.pack_bytes_max {
                self.close_pack().await?;
            }
            let pack = self.packs.len() as u32;
            let offset = self.current().builder.push_packed(block.data, block.hash);
            let place = Place::Stored { pack, offset, len, codec: block.codec };
            self.settled.push(Settled { file: block.file, block: block.block, slot: block.slot, place });
            self.send_parts(self.objects.part_bytes()).await?;
        }
        Ok(())
    }

    async fn send_parts(&mut self, at_least: usize) -> object_store::Result<()> {
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        if current.builder.pending() < at_least {
            return Ok(());
        }
        let upload = match &mut current.upload {
            Some(upload) => upload,
            none => none.insert(self.objects.begin(&pack_object(current.uuid)).await?),
        };
        let part = upload.put_part(PutPayload::from_iter(current.builder.take_parts()));
        let unhashed = current.builder.take_unhashed();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => current.in_flight.push_back(runtime.spawn(async move {
                let hashed = hash_beside(unhashed).await?;
                part.await.map(|()| hashed)
            })),
            Err(_) => {
                current.builder.set_hashes(unhashed.hash());
                part.await?;
            }
        }
        current.wait_until_in_flight(PARTS_IN_FLIGHT).await
    }

    async fn close_pack(&mut self) -> object_store::Result<()> {
        // The footer comes when all hashes are there.
        self.send_parts(1).await?;
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        current.wait_until_in_flight(0).await?;
        let pack = current.builder.finish(Some(current.uuid));
        self.send_parts(1).await?;
        let Some(mut current) = self.current.take() else { return Ok(()) };
        current.wait_until_in_flight(0).await?;
        if let Some(mut upload) = current.upload {
            upload.complete().await?;
        }
        self.packs.push(pack);
        Ok(())
    }
}

impl Current {
    /// Waits for the oldest parts until no more than this many are on their way.
    async fn wait_until_in_flight(&mut self, parts: usize) -> object_store::Result<()> {
        while self.in_flight.len() > parts {
            let Some(part) = self.in_flight.pop_front() else { break };
            let hashed =
                part.await.unwrap_or_else(|source| Err(object_store::Error::JoinError { source }))?;
            self.builder.set_hashes(hashed);
        }
        Ok(())
    }
}

/// The hashes of the blocks of a part, while the part before it is written.
async fn hash_beside(unhashed: Unhashed) -> object_store::Result<Hashed> {
    if unhashed.is_empty() {
        return Ok(Hashed::default());
    }
    Ok(tokio::task::spawn_blocking(move || unhashed.hash()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn packed_blocks_go_on_in_the_next_pack_when_one_is_full() {
        let objects = Objects::new(Arc::new(object_store::memory::InMemory::new()));
        let mut sink = Sink { pack_bytes_max: 1000, ..Sink::new(objects.clone()) };
        let blocks: Vec<Vec<u8>> = (0..10u8).map(|number| vec![number; 300]).collect();
        pollster::block_on(async {
            for (number, block) in (0..).zip(&blocks) {
                let (owner, hash) = ((FileId::from_raw(1), number), super::super::pack::block_hash(block));
                sink.put_packed(owner, Bytes::copy_from_slice(block), Codec::Zstd, hash).await.unwrap();
            }
            sink.complete().await.unwrap();
            let settled = sink.take_settled();
            assert_eq!(settled.len(), blocks.len());
            for place in settled {
                let Place::Stored { pack, offset, len, .. } = place.place else { panic!("{place:?}") };
                assert_eq!(u64::from(pack), place.block / 3, "three fit into one");
                let object = sink.object(pack).unwrap();
                let range = (offset, offset + u64::from(len));
                let bytes = objects.get_range(&object, range.0, range.1).await.unwrap();
                assert!(bytes == blocks[place.block as usize], "{place:?}");
            }
        });
    }
}
