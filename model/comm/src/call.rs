//! What a rank asks for, as it travels to the other ranks to be compared.

use bytemuck::{Pod, Zeroable};

use crate::element::NAMES;

/// The collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    AllGather,
    ReduceScatter,
    ReduceScatterAdd,
    AllReduce,
    Broadcast,
    Barrier,
    GatherBytes,
    Send,
    Receive,
}

impl Operation {
    const ALL: [Self; 9] = [
        Self::AllGather,
        Self::ReduceScatter,
        Self::ReduceScatterAdd,
        Self::AllReduce,
        Self::Broadcast,
        Self::Barrier,
        Self::GatherBytes,
        Self::Send,
        Self::Receive,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::ReduceScatterAdd => "reduce-scatter-add",
            Self::AllReduce => "all-reduce",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::GatherBytes => "gather of bytes",
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }

    /// Whether every member of the group calls it.
    pub fn is_collective(self) -> bool {
        !matches!(self, Self::Send | Self::Receive)
    }
}

/// An operation with its shape: equal on all ranks that call it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Call {
    /// Number of the operation among those of the group.
    pub number: u64,
    operation: u32,
    element: u32,
    rows: u64,
    width: u64,
    root: u64,
}

impl Call {
    /// Call `number` of a group: `rows` of `width` elements each, from or to the member `root`.
    pub fn new(
        number: u64,
        operation: Operation,
        element: &str,
        [rows, width]: [usize; 2],
        root: usize,
    ) -> Self {
        let place = |found: Option<usize>| found.unwrap_or(u32::MAX as usize) as u32;
        Self {
            number,
            operation: place(Operation::ALL.iter().position(|other| *other == operation)),
            element: place(NAMES.iter().position(|name| *name == element)),
            rows: rows as u64,
            width: width as u64,
            root: root as u64,
        }
    }

    /// Which operation it is.
    pub fn operation(&self) -> Option<Operation> {
        Operation::ALL.get(self.operation as usize).copied()
    }

    /// In words: `all-gather of 12 x 4 f32`.
    pub fn describe(&self) -> String {
        let Some(operation) = self.operation() else { return "an unknown operation".into() };
        let element = NAMES.get(self.element as usize).copied().unwrap_or("unknown elements");
        let shape = match self.width {
            1 => self.rows.to_string(),
            width => format!("{} x {width}", self.rows),
        };
        let name = operation.name();
        match operation {
            Operation::Barrier | Operation::GatherBytes => name.to_string(),
            Operation::Broadcast => {
                format!("{name} of {shape} {element} from member {}", self.root)
            }
            _ => format!("{name} of {shape} {element}"),
        }
    }
}
