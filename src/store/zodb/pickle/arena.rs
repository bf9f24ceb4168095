//! Where the values of a record lie: tables, and numbers that lead from one to another.
//!
//! Invariant: a number is given out only for what is there, and nothing is ever removed.

use std::num::NonZeroU32;

use super::{Call, ClassName, Value, ValueId};

/// A tuple: a run of the table of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    len: u32,
}

/// The number of a list; dicts and sets are lists too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListId(u32);

/// The number of the names of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassId(u32);

/// The number of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(u32);

/// The tables.
#[derive(Default)]
pub struct Arena<'a> {
    values: Vec<Value<'a>>,
    items: Vec<ValueId>,
    lists: Vec<Vec<ValueId>>,
    classes: Vec<ClassName<'a>>,
    calls: Vec<Call>,
}

/// The number of the next entry of a table. It fits: opcodes are counted, none makes more than two entries, and the
/// items of a tuple were each put on the stack by an opcode of their own.
fn next<T>(table: &[T]) -> u32 {
    u32::try_from(table.len()).unwrap_or(u32::MAX)
}

/// The entry with a number.
fn entry<T>(table: &[T], number: u32) -> Option<&T> {
    table.get(usize::try_from(number).ok()?)
}

impl<'a> Arena<'a> {
    pub fn add(&mut self, value: Value<'a>) -> ValueId {
        self.values.push(value);
        // The numbers of values begin with 1, so that what is memorised takes 4 bytes.
        ValueId(NonZeroU32::new(next(&self.values)).unwrap_or(NonZeroU32::MAX))
    }

    pub fn value(&self, id: ValueId) -> Value<'a> {
        entry(&self.values, id.0.get() - 1).copied().unwrap_or(Value::None)
    }

    pub fn add_span(&mut self, items: impl IntoIterator<Item = ValueId>) -> Span {
        let start = next(&self.items);
        self.items.extend(items);
        Span { start, len: next(&self.items).saturating_sub(start) }
    }

    pub fn span(&self, span: Span) -> &[ValueId] {
        let rest = usize::try_from(span.start).ok().and_then(|start| self.items.get(start..));
        let len = usize::try_from(span.len).ok();
        rest.zip(len).and_then(|(rest, len)| rest.get(..len)).unwrap_or_default()
    }

    pub fn add_list(&mut self, items: Vec<ValueId>) -> ListId {
        let id = ListId(next(&self.lists));
        self.lists.push(items);
        id
    }

    pub fn list(&self, id: ListId) -> &[ValueId] {
        entry(&self.lists, id.0).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn list_mut(&mut self, id: ListId) -> Option<&mut Vec<ValueId>> {
        self.lists.get_mut(usize::try_from(id.0).ok()?)
    }

    pub fn add_class(&mut self, class: ClassName<'a>) -> ClassId {
        let id = ClassId(next(&self.classes));
        self.classes.push(class);
        id
    }

    pub fn class(&self, id: ClassId) -> Option<ClassName<'a>> {
        entry(&self.classes, id.0).copied()
    }

    pub fn add_call(&mut self, call: Call) -> CallId {
        let id = CallId(next(&self.calls));
        self.calls.push(call);
        id
    }

    pub fn call(&self, id: CallId) -> Option<Call> {
        entry(&self.calls, id.0).copied()
    }

    pub fn call_mut(&mut self, id: CallId) -> Option<&mut Call> {
        self.calls.get_mut(usize::try_from(id.0).ok()?)
    }
}
