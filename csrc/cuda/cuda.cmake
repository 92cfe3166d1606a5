# The library dive_cuda: csrc/cuda/*.cu, compiled by nvcc for each GPU in DIVE_CUDA_ARCHS.
#
# nvcc is called as it is and not through CMake's own CUDA support, which does not know how NVIDIA's
# Python packages are laid out. DIVE_CUDA is set to whether the library is there.

include(CheckCXXSourceCompiles)

set(DIVE_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: ON, OFF, or AUTO where nvcc is found")
set(DIVE_CUDA_ARCHS "auto" CACHE STRING "GPUs to compile for, as 80;90a;80-ptx: auto (those of this \
machine, or a short list where there is none), native (those of this machine or nothing), or all")
# each architecture from Ampere on; -ptx is translated by later GPUs when the module is loaded
set(DIVE_CUDA_ALL 80 80-ptx 86 89 90a 100 120 120-ptx)
# machine code for Ampere and Ada, and for Hopper; others translate PTX
set(DIVE_CUDA_SHORT 80 80-ptx 90a)

# Reports why CUDA is not built: as an error where it was requested, else in one line.
function(dive_cuda_missing reason)
  if(DIVE_CUDA_WANTED STREQUAL "ON")
    message(FATAL_ERROR "DIVE_CUDA is ON, but ${reason}")
  endif()
  message(STATUS "CUDA: none, ${reason}")
endfunction()

# Searches CUDACXX, PATH, CUDA_HOME, then the Python package nvidia-cuda-nvcc.
function(dive_find_nvcc)
  if(DIVE_NVCC)
    return()
  endif()
  if(NOT "$ENV{CUDACXX}" STREQUAL "")
    set(found "$ENV{CUDACXX}")
  else()
    set(paths $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    if(Python_EXECUTABLE)
      execute_process(COMMAND "${Python_EXECUTABLE}" -c
        "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE)
      file(GLOB installed ${packages}/nvidia/cu[0-9]*/bin)
      list(APPEND paths ${installed})
    endif()
    find_program(found nvcc HINTS ENV PATH PATHS ${paths} NO_DEFAULT_PATH NO_CACHE)
  endif()
  if(found)  # where there is none, the next run looks again
    set(DIVE_NVCC "${found}" CACHE FILEPATH "CUDA's compiler" FORCE)
  endif()
endfunction()

# The architectures that nvcc can compile for, as 80;90;90a. Its own list has none with a letter, so
# each of these is tried: a toolkit of 11.8 knows 90 and not 90a.
function(dive_known_archs result)
  execute_process(COMMAND "${DIVE_NVCC}" --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  foreach(arch IN LISTS DIVE_CUDA_ALL DIVE_CUDA_ARCHS)
    string(REGEX REPLACE "-ptx$" "" arch "${arch}")
    if(arch MATCHES "^[0-9]+[a-z]$" AND NOT arch IN_LIST known)
      execute_process(COMMAND "${DIVE_NVCC}" --dryrun -x cu -c /dev/null
        -gencode arch=compute_${arch},code=sm_${arch}
        OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE status)
      if(status EQUAL 0)
        list(APPEND known ${arch})
      endif()
    endif()
  endforeach()
  set(${result} "${known}" PARENT_SCOPE)
endfunction()

# The architectures of this machine's GPUs, as "90a": none where there is no driver. `known` are those
# that nvcc can compile for; a newer GPU translates PTX of the newest of these.
function(dive_native_archs result known)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE lines RESULT_VARIABLE status ERROR_QUIET)
  set(archs "")
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" lines "${lines}")
    foreach(line IN LISTS lines)
      string(REPLACE "." "" arch "${line}")
      if(arch LESS 80)
        message(STATUS "CUDA: nothing for a GPU of compute capability ${line}, older than 8.0")
      elseif(arch EQUAL 90 AND "90a" IN_LIST known)
        list(APPEND archs 90a)
      elseif(arch IN_LIST known)
        list(APPEND archs ${arch})
      else()
        set(newest 80)
        foreach(one IN LISTS known)
          if(one MATCHES "^[0-9]+$" AND one GREATER newest AND one LESS arch)
            set(newest ${one})
          endif()
        endforeach()
        list(APPEND archs ${newest}-ptx)
      endif()
    endforeach()
    list(REMOVE_DUPLICATES archs)
  endif()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# The short list without the architectures that this nvcc does not know.
function(dive_short_archs result known)
  set(archs "")
  foreach(arch IN LISTS DIVE_CUDA_SHORT)
    string(REGEX REPLACE "-ptx$" "" code "${arch}")
    string(REGEX REPLACE "[a-z]$" "" plain "${code}")
    if(code IN_LIST known)
      list(APPEND archs ${arch})
    elseif(plain IN_LIST known)  # the kernels use nothing that the letter stands for
      list(APPEND archs ${plain})
    else()
      message(STATUS "CUDA: nothing for sm_${code}, which ${DIVE_NVCC} does not know")
    endif()
  endforeach()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

# The architectures that DIVE_CUDA_ARCHS names, or why there are none; `known` is as above.
function(dive_choose_archs result why known)
  set(archs ${DIVE_CUDA_ARCHS})
  set(reason "")
  if(archs STREQUAL "all")
    set(archs ${DIVE_CUDA_ALL})
  elseif(archs STREQUAL "native" OR archs STREQUAL "auto")
    dive_native_archs(archs "${known}")
    if(NOT archs AND DIVE_CUDA_ARCHS STREQUAL "native")
      set(reason "DIVE_CUDA_ARCHS is 'native' and nvidia-smi shows no GPU to compile for")
    elseif(NOT archs)
      dive_short_archs(archs "${known}")
      if(NOT archs)
        set(reason "${DIVE_NVCC} is too old to know sm_80")
      endif()
      message(STATUS "CUDA: nvidia-smi shows no GPU to compile for, so for a short list of GPUs; "
        "DIVE_CUDA_ARCHS names others")
    endif()
  endif()
  foreach(arch IN LISTS archs)
    string(REGEX REPLACE "-ptx$" "" code "${arch}")
    if(NOT code IN_LIST known)
      set(reason "nvcc does not know sm_${code} of DIVE_CUDA_ARCHS")
    endif()
  endforeach()
  set(${result} "${archs}" PARENT_SCOPE)
  set(${why} "${reason}" PARENT_SCOPE)
endfunction()

# nvcc's options for a list of architectures: one each, with machine code and PTX together
function(dive_gencode result archs)
  set(options "")
  foreach(arch IN LISTS archs)
    if(arch MATCHES "^(.*)-ptx$")
      if(NOT CMAKE_MATCH_1 IN_LIST archs)
        list(APPEND options -gencode arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1})
      endif()
    elseif("${arch}-ptx" IN_LIST archs)
      list(APPEND options -gencode "arch=compute_${arch},code=[sm_${arch},compute_${arch}]")
    else()
      list(APPEND options -gencode arch=compute_${arch},code=sm_${arch})
    endif()
  endforeach()
  set(${result} "${options}" PARENT_SCOPE)
endfunction()

# The architectures, options and runtime library for DIVE_NVCC; or why it cannot compile here.
function(dive_set_up_cuda archs_found flags_found runtime_found why)
  # the toolkit's folder by nvcc's own output, as DIVE_NVCC may be a script
  execute_process(COMMAND "${DIVE_NVCC}" --dryrun -x cu -c /dev/null
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  if(NOT status EQUAL 0 OR NOT output MATCHES "#\\$ TOP=([^\n]*)")
    set(${why} "${DIVE_NVCC} does not run:\n${output}" PARENT_SCOPE)
    return()
  endif()
  string(STRIP "${CMAKE_MATCH_1}" root)
  find_library(runtime libcudart_static.a NO_CACHE NO_DEFAULT_PATH PATHS ${root}
    PATH_SUFFIXES lib64 lib targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib targets/sbsa-linux/lib)
  if(NOT runtime)
    set(${why} "there is no libcudart_static.a below ${root} (nvidia-cuda-runtime has it)"
      PARENT_SCOPE)
    return()
  endif()

  dive_known_archs(known)
  dive_choose_archs(archs reason "${known}")
  if(reason)
    set(${why} "${reason}" PARENT_SCOPE)
    return()
  endif()
  dive_gencode(targets "${archs}")

  # only drivers from 550 on read the tighter compression: a toolkit of 13 requires one, and one of 12
  # does not
  execute_process(COMMAND "${DIVE_NVCC}" --version OUTPUT_VARIABLE version)
  set(compress -Xfatbin -compress-all)
  if(version MATCHES "release ([0-9]+)" AND CMAKE_MATCH_1 GREATER_EQUAL 13)
    set(compress --compress-mode=size)
  endif()
  if(DIVE_WERROR)  # the host compiler's warnings among them
    list(APPEND compress -Werror all-warnings)
  endif()
  set(flags -std=c++17 -O3 ${compress} ${targets}
    -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler=-fPIC,-fvisibility=hidden,-Wall
    -I${CMAKE_CURRENT_SOURCE_DIR}/csrc)

  # a dry run finds neither a host compiler that is too new for this nvcc nor a toolkit that is too
  # old for the sources: this header has all that the sources require of the toolkit
  set(trial ${CMAKE_CURRENT_BINARY_DIR}/cuda/trial.cu)
  file(WRITE ${trial} "#include \"cuda/runtime.h\"\n__global__ void dive_trial() {}\n")
  execute_process(COMMAND "${DIVE_NVCC}" ${flags} -c ${trial} -o ${trial}.o
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    if(NOT output MATCHES "[^\n]*(error|fatal) *:[^\n]*")
      string(REGEX MATCH "[^\n]+" output "${output}")
    else()
      set(output "${CMAKE_MATCH_0}")
    endif()
    set(${why} "${DIVE_NVCC} does not compile with ${CMAKE_CXX_COMPILER} (CXX): ${output}"
      PARENT_SCOPE)
    return()
  endif()
  set(${archs_found} "${archs}" PARENT_SCOPE)
  set(${flags_found} "${flags}" PARENT_SCOPE)
  set(${runtime_found} "${runtime}" PARENT_SCOPE)
  set(${why} "" PARENT_SCOPE)
endfunction()

function(dive_add_cuda)
  string(TOUPPER "${DIVE_CUDA}" DIVE_CUDA_WANTED)
  set(DIVE_CUDA OFF PARENT_SCOPE)
  if(DIVE_CUDA_WANTED STREQUAL "OFF")
    return()
  endif()
  check_cxx_source_compiles("#include <cstddef>
    #ifndef _LIBCPP_VERSION
    #error
    #endif
    int main() { return 0; }" DIVE_LIBCXX)
  if(DIVE_LIBCXX)
    dive_cuda_missing("nvcc does not work with libc++, which ${CMAKE_CXX_COMPILER} brings")
    return()
  endif()
  dive_find_nvcc()
  if(NOT DIVE_NVCC)
    dive_cuda_missing("nvcc is not in CUDACXX, PATH or CUDA_HOME, nor installed as nvidia-cuda-nvcc")
    return()
  endif()

  dive_set_up_cuda(archs flags runtime reason)
  if(reason)
    dive_cuda_missing("${reason}")
    return()
  endif()

  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu)
  set(objects "")
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object}
      COMMAND ${DIVE_NVCC} ${flags} -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "nvcc ${name}")
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(dive_cuda STATIC ${objects})
  set_target_properties(dive_cuda PROPERTIES LINKER_LANGUAGE CXX)
  list(JOIN archs "," built)
  target_compile_definitions(dive_cuda INTERFACE DIVE_CUDA DIVE_CUDA_ARCHS="${built}")
  # after the objects that need it: the static runtime library, which finds libcuda itself
  target_link_libraries(dive_cuda PUBLIC dive_cpu ${runtime} Threads::Threads rt ${CMAKE_DL_LIBS})
  message(STATUS "CUDA: ${DIVE_NVCC} for ${built}")
  set(DIVE_CUDA ON PARENT_SCOPE)
endfunction()
