// Arguments that are no tensors, checked: of another type or value than they should be, or objects
// of `__new__` alone, without `__init__`.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <string>

namespace dive {

// An argument that is no tensor; TypeError. pybind11's own message has the repr of all arguments,
// and torch crashes in that of a tensor whose memory was freed.
template <class T>
T plain(const char* name, pybind11::handle object, const char* wanted) {
  try {
    return object.cast<T>();
  } catch (const pybind11::cast_error&) {
    throw pybind11::type_error(std::string(name) + " is a " + Py_TYPE(object.ptr())->tp_name +
                               ", want " + wanted);
  }
}

inline std::int64_t whole(const char* name, pybind11::handle object) {
  return plain<std::int64_t>(name, object, "a whole number of 64 bits");
}

inline float positive(const char* name, double value) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw pybind11::value_error(std::string(name) + " is " + std::to_string(value) +
                                ", want a finite number >= 0");
  }
  return static_cast<float>(value);
}

// The C++ object of a Python object; TypeError where that is of another type or was never
// initialised: pybind11 would return memory in which nothing was constructed.
template <class T>
T& initialised(pybind11::handle object, const char* name) {
  namespace py = pybind11;
  if (!py::isinstance<T>(object)) {
    throw py::type_error("got a " + std::string(Py_TYPE(object.ptr())->tp_name) + ", want a " +
                         name);
  }
  auto* const instance = reinterpret_cast<py::detail::instance*>(object.ptr());
  auto held = instance->get_value_and_holder(py::detail::get_type_info(typeid(T)));
  if (!held.holder_constructed()) {
    throw py::type_error("this " + std::string(name) + " is empty: " + name +
                         ".__init__ was never called, or failed");
  }
  return *static_cast<T*>(held.value_ptr());
}

// A member function as a function of Python's `self`, which is checked first.
template <class T, class R, class... A>
auto method(R (T::*call)(A...), const char* name) {
  return [call, name](pybind11::handle self, A... arguments) -> R {
    return (initialised<T>(self, name).*call)(std::forward<A>(arguments)...);
  };
}

template <class T, class R>
auto method(R (T::*call)() const, const char* name) {
  return [call, name](pybind11::handle self) -> R {
    return (initialised<const T>(self, name).*call)();
  };
}

}  // namespace dive
