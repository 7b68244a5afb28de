//! What several goals share: the command line, the programs, and what takes long to set up.

use crate::args::Args;
use crate::goals::large::Large;
use crate::goals::warm::Tracks;
use crate::kernel;
use crate::programs::Programs;

pub(crate) struct World {
    pub(crate) args: Args,
    pub(crate) programs: Programs,
    /// Descriptors that this process and each that it starts may have.
    pub(crate) descriptors: u64,
    /// The warm rounds, once they were run: latency and cost are two goals of the same rounds.
    pub(crate) warm: Option<Tracks>,
    /// A broker with many entries and many live backends, once it was made.
    pub(crate) large: Option<Large>,
}

impl World {
    pub(crate) fn new(args: Args, programs: Programs) -> Self {
        Self { args, programs, descriptors: kernel::raise_descriptor_limit(), warm: None, large: None }
    }
}
