// libnvrtc.so.13 for a machine without CUDA: compiles a kernel to a shared library with g++ and cushim.h.
//
// Environment:  FAKECUDA_INC        folders of headers, separated by colons; the first one holds cushim.h
//               FAKECUDA_PCH        a folder that keeps cushim.h as compiled, for each set of options
//               FAKECUDA_CXX        the compiler (gcc: it takes C++ as g++ does, and links only libraries that are named)
//               FAKECUDA_CXXFLAGS   its options (-O1), e.g. "-O1 -fsanitize=undefined"
//               FAKECUDA_KEEP = 1   leave the intermediate files in TMPDIR
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "files.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum Result { SUCCESS = 0, COMPILATION = 6 };  // the values of nvrtcResult

struct Program {
    std::string source, log, binary;
    std::vector<std::string> expressions;        // names of template instances that were asked for
    std::map<std::string, std::string> lowered;  // expression -> the name cuModuleGetFunction knows
};

std::string quote(const std::string& word) {
    std::string quoted = "'";
    for (char c : word) c == '\'' ? quoted += "'\\''" : quoted += c;
    return quoted + "'";
}

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }
bool is_name(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// The folders among NVRTC's options, and those of the build.
std::string include_options(const std::vector<std::string>& options) {
    std::string line;
    for (const std::string& option : options)
        if (starts_with(option, "-I")) line += " " + quote(option);
    std::stringstream folders(setting("FAKECUDA_INC", ""));
    for (std::string folder; std::getline(folders, folder, ':');) line += " -I" + quote(folder);
    return line;
}

// Macros are defined after cushim.h: a kernel's D or T must not reach into the headers before it.
std::string definitions(const std::vector<std::string>& options, const std::string& source) {
    std::string lines;
    // CuPy's own kernels include headers that, told of CUDA, ask for more of its compiler than g++ has.
    if (source.find("#include <cupy/") == std::string::npos) lines += "#define __CUDACC__ 1\n";
    for (const std::string& option : options) {
        const std::string body = option.substr(std::min<size_t>(2, option.size()));
        const size_t equals = body.find('=');
        if (starts_with(option, "-U")) lines += "#undef " + body + "\n";
        if (starts_with(option, "-D"))
            lines += "#define " + body.substr(0, equals) + " " +
                     (equals == std::string::npos ? "1" : body.substr(equals + 1)) + "\n";
    }
    return lines;
}

// Short spellings of NVRTC's long options.
std::vector<std::string> shortened(int count, const char* const* options) {
    const std::map<std::string, std::string> letters = {
        {"--include-path=", "-I"}, {"--define-macro=", "-D"}, {"--undefine-macro=", "-U"}};
    std::vector<std::string> words(options, options + count);
    for (std::string& word : words)
        for (const auto& [prefix, letter] : letters)
            if (starts_with(word, prefix)) word = letter + word.substr(prefix.size());
    return words;
}

// `name[` ... `;` of an `extern __shared__ T name[];` becomes a pointer to the dynamic shared memory. The text
// starts after the marker.
std::string dynamic_declaration(const std::string& declaration) {
    const size_t bracket = declaration.find('[');
    size_t end = bracket;
    while (end > 0 && isspace(static_cast<unsigned char>(declaration[end - 1]))) end--;
    size_t begin = end;
    while (begin > 0 && is_name(declaration[begin - 1])) begin--;
    const std::string name = declaration.substr(begin, end - begin);
    return declaration.substr(0, begin) + "* " + name + " = (decltype(" + name + "))cushim::dynamic_shared()";
}

// Gives every __shared__ variable its storage. g++ refuses one section for variables of templates and of plain
// functions together; such a module goes without the section, so without poisoned static shared memory.
std::string place_shared(const std::string& text, bool poisoned) {
    const std::string marker = "__cushim_shared__";
    const std::string storage = poisoned ? "static __attribute__((section(\"cushim_shared\")))" : "static";
    std::string out;
    size_t from = 0;
    for (size_t at; (at = text.find(marker, from)) != std::string::npos;) {
        out += text.substr(from, at - from);
        from = at + marker.size();
        const size_t before = out.find_last_not_of(" \t\r\n");
        const bool dynamic = before != std::string::npos && before >= 5 && out.compare(before - 5, 6, "extern") == 0;
        const size_t end = text.find(';', from);
        if (dynamic && end != std::string::npos) {
            out.erase(before - 5);
            out += dynamic_declaration(text.substr(from, end - from));
            from = end;
        } else {
            out += storage;
        }
    }
    return out + text.substr(from);
}

// The name before the parameter list that follows a __global__, past attributes; empty if there is none.
std::string declared_name(const std::string& text, size_t at) {
    std::string name;
    for (; at < text.size() && text[at] != ';' && text[at] != '{'; at++) {
        if (is_name(text[at])) {
            const size_t begin = at;
            while (is_name(text[at + 1])) at++;
            name = text.substr(begin, at + 1 - begin);
        } else if (text[at] == '(' && name == "__attribute__") {
            int depth = 0;
            do depth += (text[at] == '(') - (text[at] == ')');
            while (depth && ++at < text.size());
        } else if (text[at] == '(') {
            return name;
        }
    }
    return "";
}

std::string entry_point(const std::string& exported, const std::string& kernel) {
    return "extern \"C\" void __cushim_call_" + exported + "(void** a) { cushim::call(&" + kernel + ", a); }\n";
}

// Removes the __global__ markers and appends an entry point for every kernel that is not a template.
std::string export_kernels(const std::string& text) {
    const std::string marker = "__cushim_global__";
    std::string out;
    std::map<std::string, std::string> entries;
    size_t from = 0;
    for (size_t at; (at = text.find(marker, from)) != std::string::npos;) {
        out += text.substr(from, at - from);
        from = at + marker.size();
        const size_t head = out.rfind("template"), last_end = out.find_last_of(";}{");
        const bool is_template = head != std::string::npos && (last_end == std::string::npos || head > last_end);
        const std::string name = declared_name(text, from);
        if (!name.empty() && !is_template) entries[name] = entry_point(name, name);
    }
    out += text.substr(from) + "\n";
    for (const auto& [name, entry] : entries) out += entry;
    return out;
}

std::string export_expressions(Program& program) {
    std::string out;
    for (const std::string& expression : program.expressions) {
        const std::string name = "expression_" + std::to_string(program.lowered.size());
        program.lowered[expression] = name;
        out += entry_point(name, expression);
    }
    return out;
}

std::string compiler() { return setting("FAKECUDA_CXX", "gcc"); }
std::string compiler_flags() { return setting("FAKECUDA_CXXFLAGS", "-O1"); }

// Options that find cushim.h as `command` compiled it before, for it takes most of a small program's time; none where
// nothing is to be kept, or where the compiler keeps nothing. Who makes it at the same time makes the same.
std::string precompiled(const std::string& command) {
    const std::string kept = setting("FAKECUDA_PCH", ""), header = setting("FAKECUDA_INC", "");
    if (kept.empty()) return "";
    const std::string folder = kept + "/" + std::to_string(std::hash<std::string>{}(command)),
                      path = folder + "/cushim.h.gch", made = path + "." + std::to_string(getpid());
    if (access(path.c_str(), R_OK)) {
        mkdir(kept.c_str(), 0777), mkdir(folder.c_str(), 0777);
        const std::string text = quote(header.substr(0, header.find(':')) + "/cushim.h");
        if (system((command + include_options({}) + " -x c++-header " + text + " -o " + quote(made)).c_str())) return "";
        rename(made.c_str(), path.c_str());
    }
    return " -fpch-preprocess -I" + quote(folder);
}

// Preprocess, give the markers their meaning, compile. The line markers of the preprocessor keep the kernel's own
// file names and lines in the messages.
bool compile(Program& program, const std::vector<std::string>& options) {
    const std::string source = temporary_path("fakecuda", ".cu"), macros = temporary_path("fakecuda", ".h"),
                      text = temporary_path("fakecuda", ".ii"), library = temporary_path("fakecuda", ".so"),
                      log = temporary_path("fakecuda", ".log");
    // CuPy's own headers want C++17 and its library; a kernel without them is compiled faster without all that.
    const bool with_cupy = program.source.find("#include <cupy/") != std::string::npos;
    const std::string language = with_cupy ? " -std=gnu++17" : " -std=gnu++14 -fno-exceptions -fno-threadsafe-statics";
    const std::string command = compiler() + language + " -w -fpermissive -fPIC -fno-gnu-unique " + compiler_flags();
    const std::string to_log = " 2>" + quote(log);
    auto run = [&](const std::string& arguments) { return system((command + arguments + to_log).c_str()) == 0; };

    write_file(source, program.source);
    write_file(macros, definitions(options, program.source));
    const std::string arch = " -D__CUDA_ARCH__=900";
    bool good = run(arch + precompiled(command + arch) + include_options(options) + " -include cushim.h -include " +
                    quote(macros) + " -E -x c++ " + quote(source) + " -o " + quote(text));
    if (good) {
        const std::string preprocessed = export_kernels(read_file(text)) + export_expressions(program);
        for (bool poisoned : {true, false}) {
            write_file(text, place_shared(preprocessed, poisoned));
            good = run(" -shared -x c++-cpp-output " + quote(text) + " -x none -lm" + (with_cupy ? " -lstdc++" : "") +
                       " -o " + quote(library));
            if (good || read_file(log).find("section type conflict") == std::string::npos) break;
        }
    }
    program.log = read_file(log);
    if (good) program.binary = read_file(library);
    if (!getenv("FAKECUDA_KEEP"))
        for (const std::string& path : {source, macros, text, library, log}) unlink(path.c_str());
    return good;
}

int copy(const std::string& from, char* to) {
    memcpy(to, from.data(), from.size());
    return SUCCESS;
}
}  // namespace

API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}
API const char* nvrtcGetErrorString(int result) { return result ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }
API int nvrtcGetNumSupportedArchs(int* count) {
    *count = 3;
    return SUCCESS;
}
API int nvrtcGetSupportedArchs(int* archs) {
    archs[0] = 75, archs[1] = 80, archs[2] = 90;
    return SUCCESS;
}

API int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*,
                           const char* const*) {
    *program = new Program{source};
    return SUCCESS;
}
API int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
API int nvrtcAddNameExpression(Program* program, const char* expression) {
    program->expressions.push_back(expression);
    return SUCCESS;
}
API int nvrtcGetLoweredName(Program* program, const char* expression, const char** name) {
    *name = program->lowered[expression].c_str();
    return SUCCESS;
}

API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    const bool good = compile(*program, shortened(count, options));
    // CuPy compiles an empty source to learn the compiler's version, as comments, for the key of its cache: the flags
    // belong there, or a kernel built without a sanitizer would be served where one is asked for.
    if (good && program->source.find_first_not_of(" \n") == std::string::npos)
        program->binary = "// " + compiler() + " " + compiler_flags() + "\n";
    return good ? SUCCESS : COMPILATION;
}

API int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return SUCCESS;
}
API int nvrtcGetProgramLog(Program* program, char* log) {
    log[program->log.size()] = 0;
    return copy(program->log, log);
}
API int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    *bytes = program->binary.size();
    return SUCCESS;
}
API int nvrtcGetCUBIN(Program* program, char* cubin) { return copy(program->binary, cubin); }
API int nvrtcGetPTXSize(Program* program, size_t* bytes) { return nvrtcGetCUBINSize(program, bytes); }
API int nvrtcGetPTX(Program* program, char* ptx) { return copy(program->binary, ptx); }
