// Scores rows through a model server's gRPC port; prints a probability a line.
//
//     node score.js HOST:PORT MODEL [DENSE] < rows.tsv
//
// A row is one line: DENSE (13) raw numbers (empty = missing), then the ids of the categorical features, separated by tabs.

const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const DT_FLOAT = 1;
const DT_INT32 = 3;

const definition = loader.loadSync(path.join(__dirname, "protos", "prediction_service.proto"), { keepCase: true, defaults: true });
const { PredictionService } = grpc.loadPackageDefinition(definition).tensorflow.serving;

// A TensorProto of equally long rows; `write` is the Buffer method that writes one value of 4 bytes.
function tensor(dtype, rows, write) {
  const values = rows.flat();
  const content = Buffer.alloc(4 * values.length);
  values.forEach((value, i) => content[write](value, 4 * i));
  const dim = [{ size: rows.length }, { size: rows[0].length }];
  return { dtype, tensor_shape: { dim }, tensor_content: content };
}

// The numbers of a float32 TensorProto, which a server sends in either form.
function floats(proto) {
  if (!proto.tensor_content.length) return proto.float_val;
  return Array.from({ length: proto.tensor_content.length / 4 }, (_, i) => proto.tensor_content.readFloatLE(4 * i));
}

function main([target, name, width = 13]) {
  const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean);
  const rows = lines.map((line) => line.split("\t").map(Number));
  const dense = rows.map((row) => row.slice(0, width).map((x) => Math.log1p(Math.max(x, 0)))); // what the model takes
  const request = {
    model_spec: { name },
    inputs: {
      dense: tensor(DT_FLOAT, dense, "writeFloatLE"),
      categorical: tensor(DT_INT32, rows.map((row) => row.slice(width)), "writeInt32LE"),
    },
    output_filter: ["probability"],
  };
  const client = new PredictionService(target, grpc.credentials.createInsecure());
  client.Predict(request, { deadline: Date.now() + 60000 }, (error, response) => {
    if (error) {
      console.error(`${target}: ${grpc.status[error.code]}: ${error.details}`);
      process.exitCode = 1;
    } else {
      floats(response.outputs.probability).forEach((p) => console.log(p));
    }
    client.close();
  });
}

main(process.argv.slice(2));
