# The library dive_cuda: csrc/cuda/*.cu, compiled by nvcc for each GPU in DIVE_CUDA_ARCHS.
#
# nvcc is called as it is and not through CMake's own CUDA support, which does not know how NVIDIA's
# Python packages are laid out. DIVE_CUDA is set to whether the library is there.

set(DIVE_CUDA "AUTO" CACHE STRING "Build the CUDA kernels: ON, OFF, or AUTO where nvcc is found")
set(DIVE_CUDA_ARCHS "80;86;89;90a;100;120" CACHE STRING
  "GPUs to compile for; 'native' stands for those of this machine")
set(DIVE_CUDA_PTX "80;120" CACHE STRING "What other GPUs translate when the module is loaded")

# Why it cannot be built: an error where it was asked for, a line where it was not.
function(dive_cuda_missing reason)
  if(DIVE_CUDA_WANTED STREQUAL "ON")
    message(FATAL_ERROR "DIVE_CUDA is ON, but ${reason}")
  endif()
  message(STATUS "CUDA: none, ${reason}")
endfunction()

# CUDACXX, PATH, CUDA_HOME, then the Python package nvidia-cuda-nvcc.
function(dive_find_nvcc)
  set(DIVE_NVCC_DEFAULT "$ENV{CUDACXX}")
  if(NOT DIVE_NVCC_DEFAULT)
    set(places $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    if(Python_EXECUTABLE)
      execute_process(COMMAND "${Python_EXECUTABLE}" -c
        "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE)
      file(GLOB installed ${packages}/nvidia/cu[0-9]*/bin)
      list(APPEND places ${installed})
    endif()
    find_program(DIVE_NVCC_FOUND nvcc HINTS ENV PATH PATHS ${places} NO_DEFAULT_PATH NO_CACHE)
    if(DIVE_NVCC_FOUND)
      set(DIVE_NVCC_DEFAULT "${DIVE_NVCC_FOUND}")
    endif()
  endif()
  set(DIVE_NVCC "${DIVE_NVCC_DEFAULT}" CACHE FILEPATH "CUDA's compiler")
endfunction()

# The compute capabilities of the GPUs that are here, as "90a": none where there is no driver.
function(dive_native_archs result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE lines RESULT_VARIABLE status ERROR_QUIET)
  set(archs "")
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" lines "${lines}")
    foreach(line IN LISTS lines)
      string(REPLACE "." "" arch "${line}")
      string(REGEX REPLACE "^90$" "90a" arch "${arch}")
      list(APPEND archs ${arch})
    endforeach()
    list(REMOVE_DUPLICATES archs)
  endif()
  set(${result} "${archs}" PARENT_SCOPE)
endfunction()

function(dive_add_cuda)
  string(TOUPPER "${DIVE_CUDA}" DIVE_CUDA_WANTED)
  set(DIVE_CUDA OFF PARENT_SCOPE)
  if(DIVE_CUDA_WANTED STREQUAL "OFF")
    return()
  endif()
  dive_find_nvcc()
  if(NOT DIVE_NVCC)
    dive_cuda_missing("nvcc is not in CUDACXX, PATH or CUDA_HOME, nor installed as nvidia-cuda-nvcc")
    return()
  endif()

  # where nvcc itself says that its toolkit is, as it may be called through a script
  execute_process(COMMAND "${DIVE_NVCC}" --dryrun -x cu -c /dev/null
    OUTPUT_VARIABLE said ERROR_VARIABLE said RESULT_VARIABLE status)
  if(NOT status EQUAL 0 OR NOT said MATCHES "#\\$ TOP=([^\n]*)")
    dive_cuda_missing("${DIVE_NVCC} does not run:\n${said}")
    return()
  endif()
  string(STRIP "${CMAKE_MATCH_1}" root)
  find_library(DIVE_CUDART libcudart_static.a NO_CACHE NO_DEFAULT_PATH PATHS ${root}
    PATH_SUFFIXES lib64 lib targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib targets/sbsa-linux/lib)
  if(NOT DIVE_CUDART)
    dive_cuda_missing("there is no libcudart_static.a below ${root} (nvidia-cuda-runtime has it)")
    return()
  endif()

  set(archs ${DIVE_CUDA_ARCHS})
  set(ptx ${DIVE_CUDA_PTX})
  if(archs STREQUAL "native")
    dive_native_archs(archs)
    set(ptx "")
    if(NOT archs)
      dive_cuda_missing("DIVE_CUDA_ARCHS is 'native' and nvidia-smi shows no GPU")
      return()
    endif()
  endif()
  execute_process(COMMAND "${DIVE_NVCC}" --list-gpu-code OUTPUT_VARIABLE known)
  set(targets "")
  set(built "")
  foreach(arch IN LISTS archs)
    string(REGEX REPLACE "[af]$" "" number "${arch}")
    if(NOT known MATCHES "sm_${number}\n")
      dive_cuda_missing("${DIVE_NVCC} does not know sm_${number} of DIVE_CUDA_ARCHS")
      return()
    endif()
    list(APPEND targets -gencode arch=compute_${arch},code=sm_${arch})
    list(APPEND built ${arch})
  endforeach()
  foreach(arch IN LISTS ptx)
    list(APPEND targets -gencode arch=compute_${arch},code=compute_${arch})
    list(APPEND built ${arch}-ptx)
  endforeach()

  execute_process(COMMAND "${DIVE_NVCC}" --help OUTPUT_VARIABLE help)
  set(compress -Xfatbin -compress-all)
  if(help MATCHES "--compress-mode")
    set(compress --compress-mode=size)
  endif()
  set(flags -std=c++17 -O3 -Werror all-warnings ${compress} ${targets}
    -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler=-fPIC,-fvisibility=hidden,-Wall
    -I${CMAKE_CURRENT_SOURCE_DIR}/csrc)

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
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda)
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(dive_cuda STATIC ${objects})
  set_target_properties(dive_cuda PROPERTIES LINKER_LANGUAGE CXX)
  list(JOIN built "," built)
  target_compile_definitions(dive_cuda INTERFACE DIVE_CUDA DIVE_CUDA_ARCHS="${built}")
  # after the objects that need it: the runtime as a part of the module, which finds libcuda itself
  target_link_libraries(dive_cuda PUBLIC dive_cpu ${DIVE_CUDART} Threads::Threads rt
    ${CMAKE_DL_LIBS})
  message(STATUS "CUDA: ${DIVE_NVCC} for ${built}")
  set(DIVE_CUDA ON PARENT_SCOPE)
endfunction()
