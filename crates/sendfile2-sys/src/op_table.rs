//! The `io_uring` operations under way, and what each of them keeps.
//!
//! A zerocopy send has two completions: its result, and, if that announces it
//! (`IORING_CQE_F_MORE`), a notification that the kernel has released the memory. They may come in
//! either order, long apart, and after an error, too. This hands back what an operation keeps when
//! nothing more of it is to come, and never before. It does no I/O and knows nothing of rings.
//!
//! Source: `io_uring_enter(2)`, `IORING_OP_SEND_ZC`.

/// The operations under way, each with what it keeps.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    /// The indices of the free slots.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    /// The number of times the slot was used, so that a late completion is not taken for another
    /// operation's.
    generation: u32,
    /// `None` in a free slot.
    kept: Option<T>,
    /// The result was seen.
    answered: bool,
    /// Whether the kernel had made a copy, once the notification was seen.
    notified: Option<bool>,
}

/// The content of one completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// The operation's result.
    Answer {
        /// A notification follows.
        more: bool,
    },
    /// The kernel has released the memory.
    Notification {
        /// The kernel had made a copy.
        copied: bool,
    },
}

/// The consequence of a completion.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// More is to come: the operation goes on.
    Kept,
    /// Nothing more is to come: the operation is over, and hands back what it kept.
    Done {
        /// The value that the operation kept.
        kept: T,
        /// The kernel had made a copy, as far as a notification reported it.
        copied: bool,
    },
}

/// A completion of no operation that is under way. Nothing is handed back for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel completed an operation that is not under way (user data {key:#x}): something else \
     submits to this ring, or this is a fault of the library; what is in flight stays held"
)]
pub struct Stray {
    /// The user data of the completion.
    pub key: u64,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Keeps `kept` for an operation, whose completions will carry the key that is returned.
    pub fn insert(&mut self, kept: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, kept: None, answered: false, notified: None });
            // As many operations as there are bytes of memory in 2³² slots are not reached.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        (slot.kept, slot.answered, slot.notified) = (Some(kept), false, None);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// Returns what the operation keeps, if it is under way.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.slot(key).and_then(|slot| slot.kept.as_mut())
    }

    fn slot(&mut self, key: u64) -> Option<&mut Slot<T>> {
        let (generation, index) = split(key);
        let slot = self.slots.get_mut(index as usize)?;
        (slot.generation == generation && slot.kept.is_some()).then_some(slot)
    }

    /// Takes one completion.
    ///
    /// # Errors
    /// [`Stray`] if the operation is not under way, or has had such a completion already.
    pub fn complete(&mut self, key: u64, completion: Completion) -> Result<Step<T>, Stray> {
        let slot = self.slot(key).ok_or(Stray { key })?;
        let done = match completion {
            Completion::Answer { .. } if slot.answered => return Err(Stray { key }),
            Completion::Notification { .. } if slot.notified.is_some() => {
                return Err(Stray { key });
            }
            Completion::Answer { more } => {
                slot.answered = true;
                !more || slot.notified.is_some()
            }
            Completion::Notification { copied } => {
                slot.notified = Some(copied);
                slot.answered
            }
        };
        Ok(match slot.kept.take_if(|_| done) {
            None => Step::Kept,
            Some(kept) => {
                let copied = slot.notified.unwrap_or(false);
                self.free.push(split(key).1);
                Step::Done { kept, copied }
            }
        })
    }

    /// Takes back the operation that was inserted last, which was not begun after all.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let kept = self.slot(key)?.kept.take();
        self.free.push(split(key).1);
        kept
    }

    /// Returns the number of operations under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns whether no operation is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes back what all operations under way keep.
    pub fn drain(&mut self) -> Vec<T> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.kept).collect()
    }

    /// Iterates over what all operations under way keep.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.kept.as_ref())
    }
}

fn split(key: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the halves")]
    ((key >> 32) as u32, key as u32)
}

#[cfg(test)]
mod tests;
