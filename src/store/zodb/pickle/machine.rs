//! The stack machine that a pickle is a program for.
//!
//! Invariant: an opcode sees only what lies above the innermost mark, each opcode does work in proportion to its own bytes
//! and to what it takes off the stack, and containers are filled in place, so that all who name them see it.

use super::arena::ListId;
use super::{
    Call, ClassName, OPCODES_MAX, PROTOCOL_MAX, PickleError, Pickles, Value, ValueId, number, opcode as op,
};

impl<'a> Pickles<'a> {
    /// Reads the next pickle and answers its value.
    ///
    /// # Errors
    /// It is not whole, or not one that is read here. Nothing behind it can be read then.
    pub fn read_next(&mut self) -> Result<ValueId, PickleError> {
        self.stack.clear();
        self.marks.clear();
        loop {
            let at = self.cursor.at();
            let opcode = self.cursor.byte("a pickle")?;
            self.opcodes += 1;
            if self.opcodes > self.opcodes_max {
                return Err(PickleError::TooMany { at, what: "opcodes", max: self.opcodes_max });
            }
            if opcode == op::STOP {
                return self.stop(at);
            }
            match self.literal(at, opcode)? {
                Some(value) => self.push(value),
                None => self.step(at, opcode)?,
            }
        }
    }

    fn stop(&mut self, at: usize) -> Result<ValueId, PickleError> {
        let result = self.pop(at)?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(PickleError::Malformed { at, what: "the pickle stops with more than one value" });
        }
        Ok(result)
    }

    /// The value that an opcode spells out itself; `None` if it is one of the others.
    fn literal(&mut self, at: usize, opcode: u8) -> Result<Option<Value<'a>>, PickleError> {
        const INTEGER: &str = "an integer";
        const BYTES: &str = "a byte string";
        const TEXT: &str = "a text";
        let malformed = PickleError::Malformed { at, what: "a line is no number" };
        let cursor = &mut self.cursor;
        let value = match opcode {
            op::NONE => Value::None,
            op::NEWTRUE => Value::Bool(true),
            op::NEWFALSE => Value::Bool(false),
            op::BININT => Value::Int(i32::from_le_bytes(cursor.array(INTEGER)?).into()),
            op::BININT1 => Value::Int(cursor.byte(INTEGER)?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(cursor.array(INTEGER)?).into()),
            op::INT => match cursor.line(INTEGER)? {
                b"00" => Value::Bool(false),
                b"01" => Value::Bool(true),
                line => number::from_line(line).ok_or(malformed)?,
            },
            op::LONG => {
                let line = cursor.line(INTEGER)?;
                number::from_line(line.strip_suffix(b"L").unwrap_or(line)).ok_or(malformed)?
            }
            op::LONG1 => number::from_bytes(cursor.short(INTEGER)?),
            op::LONG4 => number::from_bytes(cursor.signed(INTEGER)?),
            op::FLOAT => number::float_from_line(cursor.line("a float")?).ok_or(malformed)?,
            op::BINFLOAT => Value::Float(f64::from_be_bytes(cursor.array("a float")?)),
            op::SHORT_BINSTRING => Value::Str(cursor.short(BYTES)?),
            op::BINSTRING => Value::Str(cursor.signed(BYTES)?),
            op::SHORT_BINBYTES => Value::Bytes(cursor.short(BYTES)?),
            op::BINBYTES => Value::Bytes(cursor.counted::<4>(BYTES)?),
            op::BINBYTES8 => Value::Bytes(cursor.counted::<8>(BYTES)?),
            op::SHORT_BINUNICODE => Value::Text(cursor.short(TEXT)?),
            op::BINUNICODE => Value::Text(cursor.counted::<4>(TEXT)?),
            op::BINUNICODE8 => Value::Text(cursor.counted::<8>(TEXT)?),
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    fn step(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::PROTO | op::FRAME => self.framing(at, opcode),
            op::MARK | op::POP | op::POP_MARK | op::DUP => self.shuffle(at, opcode),
            op::GET | op::BINGET | op::LONG_BINGET => self.recall(at, opcode),
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.memorise(at, opcode),
            op::TUPLE | op::LIST | op::DICT | op::FROZENSET => self.gather(at, opcode),
            op::EMPTY_TUPLE => self.make_tuple(at, 0),
            op::TUPLE1 => self.make_tuple(at, 1),
            op::TUPLE2 => self.make_tuple(at, 2),
            op::TUPLE3 => self.make_tuple(at, 3),
            op::EMPTY_LIST | op::EMPTY_DICT | op::EMPTY_SET => {
                let list = self.arena.add_list(Vec::new());
                self.push(container(opcode, list));
                Ok(())
            }
            op::APPEND | op::SETITEM | op::APPENDS | op::SETITEMS | op::ADDITEMS => self.fill(at, opcode),
            op::GLOBAL | op::STACK_GLOBAL => {
                let class = self.read_class(at, opcode)?;
                self.push(class);
                Ok(())
            }
            op::REDUCE | op::NEWOBJ | op::INST | op::OBJ | op::BUILD => self.arrange_call(at, opcode),
            op::PERSID | op::BINPERSID => {
                let named = match opcode {
                    op::PERSID => self.arena.add(Value::Str(self.cursor.line("a persistent id")?)),
                    _ => self.pop(at)?,
                };
                self.push(Value::Persistent(named));
                Ok(())
            }
            opcode => Err(PickleError::Opcode { at, opcode }),
        }
    }

    fn framing(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        if opcode == op::PROTO {
            return match self.cursor.byte("the number of the protocol")? {
                ..=PROTOCOL_MAX => Ok(()),
                _ => Err(PickleError::Malformed { at, what: "the protocol is newer than 5" }),
            };
        }
        let len = u64::from_le_bytes(self.cursor.array("the length of a frame")?);
        match usize::try_from(len) {
            Ok(len) if len <= self.cursor.rest().len() => Ok(()),
            _ => Err(PickleError::Cut { at, what: "a frame" }),
        }
    }

    fn shuffle(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::MARK => self.marks.push(self.stack.len()),
            op::DUP => {
                let top = self.top(at)?;
                self.stack.push(top);
            }
            op::POP if self.marks.last() != Some(&self.stack.len()) => {
                self.pop(at)?;
            }
            // A mark on top is popped as a value is.
            _ => {
                let height = self.unmark(at)?;
                self.stack.truncate(height);
            }
        }
        Ok(())
    }

    fn recall(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        let index = self.memo_index(at, opcode)?;
        let id = self.memo.get(index).copied().flatten();
        self.stack
            .push(id.ok_or(PickleError::Malformed { at, what: "it recalls what it did not memorise" })?);
        Ok(())
    }

    fn memorise(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        let index = match opcode {
            op::MEMOIZE => self.memorised,
            _ => self.memo_index(at, opcode)?,
        };
        let top = self.top(at)?;
        if index >= OPCODES_MAX {
            return Err(PickleError::TooMany { at, what: "places for what it memorises", max: OPCODES_MAX });
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        if let Some(place) = self.memo.get_mut(index) {
            self.memorised += usize::from(place.is_none());
            *place = Some(top);
        }
        Ok(())
    }

    fn memo_index(&mut self, at: usize, opcode: u8) -> Result<usize, PickleError> {
        const INDEX: &str = "a place of what it memorises";
        let index = match opcode {
            op::GET | op::PUT => match number::from_line(self.cursor.line(INDEX)?) {
                Some(Value::Int(index)) => usize::try_from(index).ok(),
                _ => None,
            },
            op::BINGET | op::BINPUT => Some(self.cursor.byte(INDEX)?.into()),
            _ => usize::try_from(u32::from_le_bytes(self.cursor.array(INDEX)?)).ok(),
        };
        index.ok_or(PickleError::Malformed { at, what: "a place of what it memorises is no number" })
    }

    fn make_tuple(&mut self, at: usize, len: usize) -> Result<(), PickleError> {
        let height = self.height_below(at, len)?;
        let span = self.arena.add_span(self.stack.drain(height..));
        self.push(Value::Tuple(span));
        Ok(())
    }

    /// Makes a container of all that lies above the mark.
    fn gather(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        let height = self.unmark(at)?;
        if opcode == op::TUPLE {
            return self.make_tuple(at, self.stack.len() - height);
        }
        let items: Vec<ValueId> = self.stack.drain(height..).collect();
        if opcode == op::DICT && !items.len().is_multiple_of(2) {
            return Err(PickleError::Malformed { at, what: "a key has no value" });
        }
        let list = self.arena.add_list(items);
        self.push(container(opcode, list));
        Ok(())
    }

    /// Moves items from the stack into the container below them.
    fn fill(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        let height = match opcode {
            op::APPEND => self.height_below(at, 1)?,
            op::SETITEM => self.height_below(at, 2)?,
            _ => self.unmark(at)?,
        };
        let is_dict = matches!(opcode, op::SETITEM | op::SETITEMS);
        if is_dict && !(self.stack.len() - height).is_multiple_of(2) {
            return Err(PickleError::Malformed { at, what: "a key has no value" });
        }
        let below = height.checked_sub(1).filter(|below| *below >= self.floor());
        let target = below.and_then(|below| self.stack.get(below)).map(|id| self.arena.value(*id));
        let list = match (opcode, target) {
            (op::APPEND | op::APPENDS, Some(Value::List(list)))
            | (op::SETITEM | op::SETITEMS, Some(Value::Dict(list)))
            | (op::ADDITEMS, Some(Value::Set(list))) => self.arena.list_mut(list),
            _ => None,
        };
        let list = list.ok_or(PickleError::Malformed { at, what: "items go into what cannot hold them" })?;
        list.extend(self.stack.drain(height..));
        Ok(())
    }

    fn read_class(&mut self, at: usize, opcode: u8) -> Result<Value<'a>, PickleError> {
        let (module, name) = match opcode {
            op::STACK_GLOBAL => {
                let [name, module] = [self.pop(at)?, self.pop(at)?].map(|id| self.name(id));
                module
                    .zip(name)
                    .ok_or(PickleError::Malformed { at, what: "the name of a class is no text" })?
            }
            _ => (self.cursor.line("the module of a class")?, self.cursor.line("the name of a class")?),
        };
        let class = ClassName::from_bytes(module, name)
            .ok_or(PickleError::Malformed { at, what: "the name of a class is too long, or no UTF-8" })?;
        Ok(Value::Class(self.arena.add_class(class)))
    }

    /// Notes what would be called; calls nothing.
    fn arrange_call(&mut self, at: usize, opcode: u8) -> Result<(), PickleError> {
        let (callable, args) = match opcode {
            op::BUILD => return self.give_state(at),
            op::REDUCE | op::NEWOBJ => {
                let args = self.pop(at)?;
                (self.pop(at)?, args)
            }
            op::INST => {
                let class = self.read_class(at, op::GLOBAL)?;
                let height = self.unmark(at)?;
                let span = self.arena.add_span(self.stack.drain(height..));
                (self.arena.add(class), self.arena.add(Value::Tuple(span)))
            }
            _ => {
                let height = self.unmark(at)?;
                let mut items = self.stack.drain(height..);
                let class = items.next();
                let span = self.arena.add_span(items);
                let class = class.ok_or(PickleError::Malformed { at, what: "an object has no class" })?;
                (class, self.arena.add(Value::Tuple(span)))
            }
        };
        let call = self.arena.add_call(Call { callable, args, state: None });
        self.push(Value::Call(call));
        Ok(())
    }

    fn give_state(&mut self, at: usize) -> Result<(), PickleError> {
        let state = self.pop(at)?;
        let call = match self.arena.value(self.top(at)?) {
            Value::Call(call) => self.arena.call_mut(call).filter(|call| call.state.is_none()),
            _ => None,
        };
        call.ok_or(PickleError::Malformed { at, what: "a state goes to what cannot have it" })?.state =
            Some(state);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        let id = self.arena.add(value);
        self.stack.push(id);
    }

    fn pop(&mut self, at: usize) -> Result<ValueId, PickleError> {
        self.height_below(at, 1)?;
        self.stack.pop().ok_or(too_few(at))
    }

    fn top(&self, at: usize) -> Result<ValueId, PickleError> {
        let height = self.height_below(at, 1)?;
        self.stack.get(height).copied().ok_or(too_few(at))
    }

    /// The height of the stack below its upper `len` values, which lie above the innermost mark.
    fn height_below(&self, at: usize, len: usize) -> Result<usize, PickleError> {
        let height = self.stack.len().checked_sub(len).filter(|height| *height >= self.floor());
        height.ok_or(too_few(at))
    }

    /// The height of the stack at the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// Takes the innermost mark away, and answers the height of the stack at it.
    fn unmark(&mut self, at: usize) -> Result<usize, PickleError> {
        self.marks.pop().ok_or(PickleError::Malformed { at, what: "a mark is missing" })
    }
}

fn too_few(at: usize) -> PickleError {
    PickleError::Malformed { at, what: "an opcode has too few values" }
}

/// The container that an opcode makes of a list.
fn container(opcode: u8, list: ListId) -> Value<'static> {
    match opcode {
        op::LIST | op::EMPTY_LIST => Value::List(list),
        op::DICT | op::EMPTY_DICT => Value::Dict(list),
        _ => Value::Set(list),
    }
}
