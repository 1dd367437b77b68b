//! Local functions of a model: calls are inlined, attribute references resolved.

use crate::import::{Importer, Named, Opsets, Scope, domain};
use crate::nodes::{Stop, node_name};
use crate::proto::NodeProto;
use infc_ir::{Value, fault};
use std::collections::HashMap;
use std::rc::Rc;

impl<'m> Importer<'m> {
    /// The nodes of a function, put where it is called; gives the results.
    pub fn call(
        &mut self,
        key: &(String, String, String),
        n: &NodeProto,
        inputs: Vec<Option<Value>>,
    ) -> Result<Vec<Value>, Stop> {
        let f = self.functions[key];
        if self.calls.contains(key) {
            return Err(Stop::Fault(fault!("function '{}' calls itself", key.1), "functions must not be recursive"));
        }
        if inputs.len() > f.input.len() {
            return Err(fault!("function '{}' takes {} operands, got {}", key.1, f.input.len(), inputs.len()).into());
        }
        let mut bindings: HashMap<String, _> = f.attribute_proto.iter().map(|a| (a.name().to_owned(), a.clone())).collect();
        for a in self.resolved(n) {
            let name = a.name().to_owned();
            if !bindings.contains_key(&name) && !f.attribute.contains(&name) {
                return Err(fault!("function '{}' has no attribute '{name}'", key.1).into());
            }
            bindings.insert(name, a);
        }
        let mut opsets: Opsets = f.opset_import.iter().map(|o| (domain(o.domain()).to_owned(), o.version())).collect();
        for (d, v) in self.opsets.iter() {
            opsets.entry(d.clone()).or_insert(*v);
        }
        let mut scope = Scope::new(self.scope().region, false);
        scope.sealed = true;
        scope.prefix = format!("{}{}/", self.scope().prefix, node_name(n));
        for (i, name) in f.input.iter().enumerate() {
            let named = inputs.get(i).copied().flatten().map_or(Named::Absent, Named::Value);
            scope.names.insert(name.clone(), named);
        }
        scope.declared = f.value_info.iter().map(|v| (v.name().to_owned(), v.clone())).collect();
        let opsets = std::mem::replace(&mut self.opsets, Rc::new(opsets));
        let bindings = std::mem::replace(&mut self.bindings, Rc::new(bindings));
        self.calls.push(key.clone());
        self.scopes.push(scope);
        let mark = self.problems.len();
        let made = self.graph.values.len();
        self.nodes(&f.node);
        let results: Vec<Option<Named>> = f.output.iter().map(|o| self.lookup(o)).collect();
        self.scopes.pop();
        self.calls.pop();
        (self.opsets, self.bindings) = (opsets, bindings);
        if self.problems.len() > mark {
            return Err(Stop::Unknown);
        }
        let mut values = vec![];
        for (i, (got, name)) in results.into_iter().zip(&f.output).enumerate() {
            match got {
                Some(Named::Value(v)) => {
                    // What the function made carries the caller's name.
                    if let Some(outer) = n.output.get(i).filter(|o| !o.is_empty())
                        && v.index() >= made
                    {
                        self.graph.values[v.index()].name = format!("{}{outer}", self.scope().prefix);
                    }
                    values.push(v);
                }
                Some(Named::Unknown) => return Err(Stop::Unknown),
                Some(Named::Absent) | None if n.output.get(i).is_none_or(String::is_empty) => break,
                Some(Named::Absent) | None => {
                    return Err(fault!("function '{}' does not compute its result '{name}'", key.1).into());
                }
            }
        }
        Ok(values)
    }
}
