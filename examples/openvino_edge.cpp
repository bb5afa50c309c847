// Predict a picture with one exported file in C++, using only OpenVINO's API. The graph resizes the picture, so the host
// only has to decode it: here a PPM file (P6), which needs no library.
//
//   protoserve export RUN --to onnx,openvino --resize-in-graph --bundle BUNDLE
//   g++ -std=c++17 openvino_edge.cpp -I$OPENVINO/include -L$OPENVINO/lib -lopenvino -o openvino_edge
//   ./openvino_edge BUNDLE/model.openvino.xml photo.ppm
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <limits>
#include <openvino/openvino.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// uint8 [1, height, width, 3]
ov::Tensor read_ppm(const std::string& name) {
    std::ifstream file(name, std::ios::binary);
    std::string magic;
    size_t width = 0, height = 0, largest = 0;
    file >> magic;
    for (size_t* number : {&width, &height, &largest}) {
        while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        file >> *number;
    }
    file.get();  // one byte of white space ends the header
    if (!file || magic != "P6" || largest != 255 || width < 2 || height < 2 || width > 20000 || height > 20000)
        throw std::runtime_error(name + ": not a PPM file (P6) of 8 bits and 2 to 20000 pixels a side");
    ov::Tensor image(ov::element::u8, {1, height, width, 3});
    file.read(reinterpret_cast<char*>(image.data<uint8_t>()), static_cast<std::streamsize>(image.get_byte_size()));
    if (!file) throw std::runtime_error(name + ": shorter than its header says");
    return image;
}

int main(int count, char** words) try {
    if (count != 3) throw std::runtime_error("usage: openvino_edge MODEL.xml PHOTO.ppm");
    ov::Core core;
    std::shared_ptr<ov::Model> model = core.read_model(words[1]);
    std::vector<std::string> nodes;
    std::istringstream lines(model->get_rt_info<std::string>("nodes"));
    for (std::string line; std::getline(lines, line);) nodes.push_back(line);

    // On processors with lower precision than float32, nearly tied evidence could change its order.
    ov::CompiledModel compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = compiled.create_infer_request();
    request.set_tensor("image", read_ppm(words[2]));
    request.infer();

    const ov::Tensor path = request.get_tensor("path");
    const float* logarithm = request.get_tensor("log_probability").data<float>();
    const size_t levels = path.get_shape()[1], top = request.get_tensor("evidence_prototype").get_shape()[2];
    for (size_t level = 0; level < levels; ++level) {
        const int64_t node = path.data<int64_t>()[level];
        if (node < 0) break;  // the leaf is above the deepest level
        std::printf("%5.1f%%  %s\n", 100 * std::exp(logarithm[node]), nodes.at(static_cast<size_t>(node)).c_str());
        // Prototypes that speak for the node have positive contributions, those against it negative ones.
        for (const auto& [kind, sign] : {std::pair<std::string, float>{"evidence", 1.0f}, {"against", -1.0f}}) {
            const int64_t* prototype = request.get_tensor(kind + "_prototype").data<int64_t>();
            const float* contribution = request.get_tensor(kind + "_contribution").data<float>();
            for (size_t place = level * top; place < level * top + std::min<size_t>(top, 3); ++place)
                if (prototype[place] >= 0 && sign * contribution[place] > 0)
                    std::printf("        %+.3f prototype %ld\n", contribution[place], static_cast<long>(prototype[place]));
        }
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
}
