# CUDA, which the build can do without. Of the driver API only cuda.h is needed, for libcuda is opened
# when a program runs; of the toolkit only nvcc, for the kernels. Neither enables CMake's CUDA language,
# for no object of ours is linked by nvcc.
#
#   TERRACE_CUDA_INCLUDE  the folder of cuda.h, or empty: the build has no CUDA devices
#   TERRACE_NVCC          nvcc, or empty: CUDA devices without kernels
set(TERRACE_CUDA AUTO CACHE STRING "CUDA devices: AUTO (where cuda.h is found), ON (it must be) or OFF")
set_property(CACHE TERRACE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TERRACE_CUDA_OLDEST 12080)  # The first cuda.h with batches of copies.

set(TERRACE_CUDA_INCLUDE "")
set(TERRACE_NVCC "")
if(NOT TERRACE_CUDA STREQUAL "OFF")
  find_path(TERRACE_CUDA_H_FOLDER cuda.h HINTS $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES include)
  find_program(TERRACE_NVCC_PROGRAM nvcc HINTS $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(TERRACE_CUDA_H_FOLDER TERRACE_NVCC_PROGRAM)
  if(TERRACE_CUDA_H_FOLDER)
    file(STRINGS ${TERRACE_CUDA_H_FOLDER}/cuda.h version REGEX "^#define CUDA_VERSION [0-9]+$")
    string(REGEX REPLACE "[^0-9]" "" version "${version}")
    if(version GREATER_EQUAL TERRACE_CUDA_OLDEST)
      set(TERRACE_CUDA_INCLUDE ${TERRACE_CUDA_H_FOLDER})
    endif()
  endif()
  if(TERRACE_CUDA STREQUAL "ON" AND NOT TERRACE_CUDA_INCLUDE)
    message(FATAL_ERROR "TERRACE_CUDA is ON, and there is no cuda.h of version ${TERRACE_CUDA_OLDEST} or later")
  endif()
  if(TERRACE_CUDA_INCLUDE AND TERRACE_NVCC_PROGRAM)
    set(TERRACE_NVCC ${TERRACE_NVCC_PROGRAM})
  endif()
endif()
if(TERRACE_CUDA_INCLUDE)
  message(STATUS "CUDA: driver API ${version} of ${TERRACE_CUDA_INCLUDE}; nvcc: ${TERRACE_NVCC}")
else()
  message(STATUS "CUDA: none")
endif()

# terrace_nvcc(OUTPUT SOURCE FLAGS...): compiles a .cu file of ours.
function(terrace_nvcc output source)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${TERRACE_NVCC} -std=c++20 -ccbin ${CMAKE_CXX_COMPILER} -I${CMAKE_SOURCE_DIR} ${ARGN} -o ${output} ${source}
    MAIN_DEPENDENCY ${source}
    DEPENDS ${CMAKE_SOURCE_DIR}/kernels/paged_copy.h ${CMAKE_SOURCE_DIR}/kernels/paged_copy_launch.h
    COMMENT "nvcc ${output}"
    VERBATIM)
endfunction()
