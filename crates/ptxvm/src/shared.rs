//! Shared memory of a block, and who touched which byte since the last barrier.

/// Nobody yet, or more than one thread.
const NONE: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Mark {
    epoch: u32,
    writer: u32,
    reader: u32,
}

/// The memory and its marks.
pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Counts barriers of the block.
    epoch: u32,
}

impl Shared {
    pub fn new(len: usize) -> Shared {
        let mark = Mark { epoch: 0, writer: NONE, reader: NONE };
        Shared { bytes: vec![0xa5; len], marks: vec![mark; len], epoch: 0 }
    }
    /// All threads of the block met.
    pub fn barrier(&mut self) {
        self.epoch += 1;
    }
    /// Notes an access of `thread`; says with whom it races.
    pub fn touch(&mut self, at: usize, len: usize, thread: u32, write: bool) -> Result<(), String> {
        for (k, mark) in self.marks[at..at + len].iter_mut().enumerate() {
            if mark.epoch != self.epoch {
                *mark = Mark { epoch: self.epoch, writer: NONE, reader: NONE };
            }
            if mark.writer != NONE && mark.writer != thread {
                let kind = if write { "writes" } else { "reads" };
                return Err(format!(
                    "thread {thread} {kind} shared byte {}, which thread {} wrote since the last barrier",
                    at + k,
                    mark.writer
                ));
            }
            if write {
                if mark.reader != NONE && mark.reader != thread {
                    let who = if mark.reader == MANY { "several threads".into() } else { format!("thread {}", mark.reader) };
                    return Err(format!(
                        "thread {thread} writes shared byte {}, which {who} read since the last barrier",
                        at + k
                    ));
                }
                mark.writer = thread;
            } else {
                mark.reader = if mark.reader == NONE || mark.reader == thread { thread } else { MANY };
            }
        }
        Ok(())
    }
}
