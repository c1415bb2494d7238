// Temporary files and their contents, for fake_driver.cpp and fake_nvrtc.cpp.
#pragma once
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

inline std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    return content.str();
}

inline void write_file(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary).write(content.data(), content.size());
}

// A name that no other process, library or call uses.
inline std::string temporary_path(const char* kind, const char* extension) {
    static int count = 0;
    return setting("TMPDIR", P_tmpdir) + "/" + kind + "_" + std::to_string(getpid()) + "_" + std::to_string(count++) +
           extension;
}
